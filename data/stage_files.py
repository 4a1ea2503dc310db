"""What a finished stage left: recorded at its end, compared at every start by one listing. Knows no stage's work.

`files.json` beside the manifest has each file's size, tag (S3: the ETag; on a disk: the date) and a checksum of samples
of its content. The manifest has only a digest of names, sizes and tags: while it holds, `files.json` stays unread; and
one of the rows of its Parquet files, which is the same wherever they are.
"""

import hashlib
import json
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from data.printable import printable
from data.row_digest import content_of_all
from data.run_layout import FILES, MANIFEST, PROGRESS, StageFiles
from data.storage import Storage

SCRATCH_SUFFIXES, SCRATCH_NAMES = (".tmp",), (".DS_Store", ".nfs")
"""Ends, and starts of names, of files that count for nothing: of writers that died, and of the system."""
PAGES, PICTURES = ("README.md", "report.html", "report.md"), "figures"
"""Written again by later stages and `jobs.report`: they must be there, with any content."""
READ_BY_LISTING = (".parquet", ".safetensors")
"""Whoever reads a folder of these takes all that are there: one too many is an error."""
SAMPLE_BYTES = 16 * 2**10
"""Read at the start, the middle and the end of a file; a smaller one is read whole."""
MOST_SAMPLED = 128
"""Files whose content one comparison reads at most; elsewhere than on a disk also the most that are recorded."""
AT_ONCE = 16
MOST_FOOTERS = 4096
"""Elsewhere than on a disk, the most files whose footers are read at a stage's end: some seconds."""

Found = dict[str, tuple[int, str]]
"""Name -> size and tag."""


@dataclass(frozen=True)
class Difference:
    """How the files of a stage differ from what it left."""

    count: int
    """Files that it left."""
    missing: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    swapped: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    """Files that it did not leave; of themselves no damage, unless somebody reads all that are there."""
    unrecorded: bool = False
    """`files.json` is gone or is none."""

    @property
    def damaged(self) -> tuple[str, ...]:
        """What is there, but not as the stage left it."""
        return (*self.resized, *self.swapped)

    @property
    def misleading(self) -> tuple[str, ...]:
        """Foreign files that a reader would take for the stage's own."""
        return tuple(name for name in self.foreign if name.endswith(READ_BY_LISTING))

    @property
    def is_damage(self) -> bool:
        return bool(self.missing or self.damaged or self.unrecorded)

    def __str__(self) -> str:
        """`1 of 12 files is missing (rows/part-00003.parquet)`."""
        kinds = {"missing": self.missing, "of another size": self.resized, "of other content": self.swapped}
        parts = [f"{_of(names, self.count)} {kind} ({_shown(names)})" for kind, names in kinds.items() if names]
        if self.unrecorded:
            parts.append(f"{FILES} is missing or damaged")
        if not parts:
            parts.append(f"{_shown(self.misleading or self.foreign)} is not one of the {self.count} files it left")
        return " and ".join(parts)


def record_files(folder: Storage) -> StageFiles:
    """Write `files.json`; call it when all else is written."""
    found = found_files(folder)
    sampled = [name for name in (found if folder.is_local else _spread(list(found))) if not is_page(name)]
    known = dict(zip(sampled, samples(folder, sampled, found), strict=True))
    written = _written(folder, {name: [*facts, known.get(name, "")] for name, facts in found.items()})
    tables = [name for name in found if name.endswith(".parquet")]
    if folder.is_local or len(tables) <= MOST_FOOTERS:
        return written.model_copy(update={"content": content_of_all(folder, tables)})
    return written


def _written(folder: Storage, files: Mapping[str, list[Any]]) -> StageFiles:
    (folder / FILES).write_bytes(json.dumps(files, ensure_ascii=False, separators=(",", ":")).encode())
    found: Found = {name: (entry[0], entry[1]) for name, entry in files.items()}
    total = sum(size for size, _ in found.values())
    return StageFiles(num_files=len(found), total_bytes=total, digest=_digest(found))


def difference(folder: Storage, files: StageFiles) -> Difference | None:
    """How the folder differs from what was recorded, None if it does not. One listing, unless a file has changed.

    A copied or touched file counts as unchanged if the samples of its content are the same.
    """
    found = found_files(folder)
    if _digest(found) == files.digest:
        return None
    recorded = _recorded(folder)
    if recorded is None:
        return Difference(files.num_files, unrecorded=True)
    both = recorded.keys() & found.keys()
    resized = sorted(name for name in both if recorded[name][0] != found[name][0])
    retagged = sorted(name for name in both.difference(resized) if recorded[name][1] != found[name][1])
    result = Difference(
        len(recorded),
        missing=tuple(sorted(recorded.keys() - found.keys())),
        resized=tuple(resized),
        swapped=tuple(_swapped(folder, recorded, found, retagged)),
        foreign=tuple(sorted(found.keys() - recorded.keys())),
    )
    return result if result.is_damage or result.foreign else None


def with_pages(folder: Storage, files: StageFiles, pages: Iterable[str]) -> StageFiles:
    """The record with these pages, which were written again; of all other files it stays as it was."""
    recorded = _recorded(folder)
    if recorded is None:
        return files
    kept = {name: entry for name, entry in recorded.items() if not is_page(name)}
    written = _written(folder, kept | {name: [0, "", ""] for name in pages})
    return written.model_copy(update={"content": files.content})


def recorded_names(folder: Storage) -> list[str]:
    """The files that the finished stage in `folder` left, as far as it recorded them."""
    return list(_recorded(folder) or {})


def foreign_files(folder: Storage) -> tuple[str, ...]:
    """Files that the finished stage in `folder` did not leave; nothing is known without its `files.json`."""
    recorded = _recorded(folder)
    return () if recorded is None else tuple(sorted(found_files(folder).keys() - recorded.keys()))


def _swapped(
    folder: Storage, recorded: Mapping[str, Sequence[Any]], found: Found, retagged: Sequence[str]
) -> Iterable[str]:
    """Those of the files with another tag, but the same size, whose content is another."""
    known = _spread([name for name in retagged if recorded[name][2]])
    compared = zip(known, samples(folder, known, found), strict=True)
    swapped = [name for name, sample in compared if sample != recorded[name][2]]
    # A copy of the whole run has other tags throughout: then a file without a sample is taken as it is.
    is_copy = len(retagged) == len(recorded.keys() & found.keys())
    unknown = [] if is_copy else [name for name in retagged if not recorded[name][2]]
    return sorted([*swapped, *unknown])


def found_files(folder: Storage) -> Found:
    """The stage's own files, by one listing; of pages only their names."""
    fs, path = folder.fs, folder.path
    listing = fs.find(path, detail=True)
    found = {posixpath.relpath(name, path): info for name, info in sorted(listing.items())}
    marks = {FILES, MANIFEST, PROGRESS}
    return {
        name: (0, "") if is_page(name) else _facts(found[name])
        for name in own_names(found)
        if name not in marks and not _is_scratch(name)
    }


def _facts(info: Mapping[str, Any]) -> tuple[int, str]:
    return int(info["size"] or 0), str(info.get("ETag") or info.get("etag") or info.get("mtime") or "")


def own_names(names: Iterable[str]) -> list[str]:
    """The names in a stage's folder without those in the folders of other stages below it."""
    names = list(names)
    marks = ("/" + MANIFEST, "/" + PROGRESS)
    others = {name.rpartition("/")[0] + "/" for name in names if name.endswith(marks)}
    return [name for name in names if not any(name.startswith(other) for other in others)]


def is_page(name: str) -> bool:
    *folders, last = name.split("/")
    return last in PAGES or PICTURES in folders


def _is_scratch(name: str) -> bool:
    """Also the folder of a pipeline's pieces, into which a worker that outlives its driver may write for seconds."""
    *folders, last = name.split("/")
    return (
        last.endswith(SCRATCH_SUFFIXES)
        or last.startswith(SCRATCH_NAMES)
        or any(part.endswith(".pieces") for part in folders)
    )


def _recorded(folder: Storage) -> dict[str, list[Any]] | None:
    try:
        with (folder / FILES).fs.open((folder / FILES).path, "rb") as file:
            content = json.loads(file.read())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    entries = content.values() if isinstance(content, dict) else [None]
    return content if all(isinstance(e, list) and len(e) == 3 for e in entries) else None


def samples(folder: Storage, names: Sequence[str], found: Found) -> list[str]:
    """A checksum of slices of each of these files."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda name: _sample(folder / name, found[name][0]), names))


def _sample(file: Storage, size: int) -> str:
    """16 hex digits of three slices of the file."""
    digest, fs, path = hashlib.sha256(), file.fs, file.path
    if size <= 3 * SAMPLE_BYTES:
        digest.update(fs.cat_file(path))
        return digest.hexdigest()[:16]
    for start in (0, size // 2, size - SAMPLE_BYTES):
        digest.update(fs.cat_file(path, start=start, end=start + SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def _spread(names: list[str]) -> list[str]:
    """At most MOST_SAMPLED of the names, evenly chosen."""
    step = max(1, -(-len(names) // MOST_SAMPLED))
    return names[::step]


def _digest(found: Found) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def _of(names: Sequence[str], count: int) -> str:
    return f"{len(names)} of {count} files {'is' if len(names) == 1 else 'are'}"


def _shown(names: Sequence[str]) -> str:
    return ", ".join(printable(name, 60) for name in names[:2]) + (" and others" if len(names) > 2 else "")
