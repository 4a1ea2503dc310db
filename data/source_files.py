"""Which files a source names: a file, those below a folder, or those that match a glob. Knows no format and no content.

Names that begin with "." or "_" are what tools leave behind (`.ipynb_checkpoints`, `_temporary`, `_SUCCESS`): they are
no data, unless the source names them itself.
"""

import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from data.errors import nearest
from data.printable import printable
from data.storage import Storage

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
"""What counts as data in a folder; a file that is named outright may be called anything."""
SHOWN_FILES = 3
"""A message names at most so many files."""
SHOWN_PATH = 80
"""Characters of a path in a message: its end, which tells files apart."""


@dataclass(frozen=True)
class SourceFiles:
    """The files to read, and those that are passed by, all sorted."""

    files: tuple[str, ...]
    other_suffix: tuple[str, ...] = ()
    """Files of the folder that are no data by their suffix."""
    hidden: tuple[str, ...] = ()
    """Files whose name, or a folder's on the way, begins with "." or "_"."""
    suffixes: tuple[str, ...] = SUFFIXES
    """Of data in a folder."""
    listed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What the listing said of each of the files to read: size, ETag, dates, as the filesystem names them."""

    def passed_by(self) -> str:
        """A sentence about what is not read; "" if all is."""
        parts = [
            f"{len(names)} file{'s' * (len(names) > 1)} {what} ({_examples(names)})"
            for names, what in (
                (self.other_suffix, "of another suffix"),
                (self.hidden, "whose path has a name with . or _ at its start"),
            )
            if names
        ]
        return (
            f"not read: {' and '.join(parts)}; read is what ends in {', '.join(self.suffixes)}: "
            "name another file outright, or by a glob"
            if parts
            else ""
        )


def shown_path(path: str, limit: int = SHOWN_PATH) -> str:
    """The end of a path, as a message shows it: a URI without user, password and query, which may be a credential."""
    if "://" in path:
        path = re.sub(r"://[^/]*@", "://", path.partition("?")[0])
    return ("..." if len(path) > limit else "") + printable(path[-limit:], limit)


def files_of(uri: str, suffixes: tuple[str, ...] = SUFFIXES) -> list[str]:
    """The file at `uri`; or all files below a folder that end in one of `suffixes`; or all that match a glob. Sorted.

    Raises FileNotFoundError, with the nearest name there is, when nothing matches.
    """
    return list(source_files(uri, suffixes).files)


def source_files(uri: str, suffixes: tuple[str, ...] = SUFFIXES) -> SourceFiles:
    """The same, with what is passed by."""
    if not uri:
        raise FileNotFoundError(
            "nothing to read at '': name a file, a folder or a glob"
        )  # not the folder that this process happens to run in
    storage = Storage(uri)
    fs, path = storage.fs, storage.path
    infos: dict[str, dict[str, Any]] = {}
    if fs.isfile(path):
        return SourceFiles((storage.uri,), listed={storage.uri: fs.info(path)})
    if fs.isdir(path):
        infos = fs.find(path, detail=True)
        below = sorted(infos)
        hidden = [p for p in below if _is_hidden(posixpath.relpath(p, path))]
        found = [p for p in below if p.endswith(suffixes)]
        other = set(below).difference(found, hidden)
        wanted = f"it is a folder without a file that ends in {', '.join(suffixes)}"
    else:
        infos = fs.glob(path, detail=True)
        found = [p for p, info in infos.items() if info["type"] == "file" or (info.get("islink") and fs.isfile(p))]
        other = set()
        hidden = [] if _is_hidden(path) else [p for p in found if _is_hidden(p)]
        wanted = "a source is a file, a folder or a glob such as folder/*.jsonl.gz"
    read = sorted(set(found).difference(hidden))
    if not read:
        there = [*sorted(other), *hidden]
        here = f"; there is {_examples(there)}" if there else _nearest_file(storage)
        raise FileNotFoundError(f"nothing to read at {uri}: {wanted}{here}")
    named = {p if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(p)): infos[p] for p in read}
    return SourceFiles(tuple(sorted(named)), tuple(sorted(other)), tuple(sorted(hidden)), suffixes, named)


def _is_hidden(path: str) -> bool:
    """True if a component begins with "." or "_"; "." and ".." are no names."""
    return any(part[:1] in (".", "_") and part not in (".", "..") for part in path.split("/"))


def _examples(names: Iterable[str]) -> str:
    shown = [shown_path(posixpath.basename(name)) for name in names]
    return ", ".join(shown[:SHOWN_FILES]) + (
        f" and {len(shown) - SHOWN_FILES} more" if len(shown) > SHOWN_FILES else ""
    )


def _nearest_file(storage: Storage) -> str:
    folder = posixpath.dirname(storage.path.rstrip("/"))
    siblings = (
        [posixpath.basename(p.rstrip("/")) for p in storage.fs.ls(folder, detail=False)]
        if storage.fs.isdir(folder)
        else []
    )
    return nearest(posixpath.basename(storage.path.rstrip("/")), siblings)
