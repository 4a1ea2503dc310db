"""The folder of a stage: whose it is, what may be cleared, and what of a finished result can be kept. Knows no stage.

`progress.json` is written before anything else and removed last, so that a folder is ours from the first file to the
last. A folder with neither that mark nor a manifest is somebody else's: nothing in it is touched.
"""

import contextlib
import os
import posixpath
from collections.abc import Mapping
from typing import Any

from data.errors import UserError
from data.printable import printable
from data.run_layout import MANIFEST, MODEL, PROGRESS, TRAINING, read_manifest
from data.stage_files import Difference, foreign_files, is_page, own_names
from data.storage import Storage


def progress_in(folder: Storage) -> dict[str, Any] | None:
    """What the stage noted before its work; None if there is no such mark."""
    mark = folder / PROGRESS
    if not mark.exists():
        return None
    try:
        content = mark.read_json()
    except (UserError, RecursionError):
        return None  # somebody's own file: ours are written whole
    return content if isinstance(content, dict) and {"fingerprint", "inputs"} <= content.keys() else None


def write_progress(folder: Storage, fingerprint: str, inputs: Any, outside: Mapping[str, str] | None = None) -> None:
    """The mark. `outside`: fingerprints of what the stage began to read from outside the run."""
    (folder / PROGRESS).write_json({"fingerprint": fingerprint, "inputs": inputs, "outside": dict(outside or {})})


def begun_with(folder: Storage) -> dict[str, str]:
    """Fingerprints of what the stage began to read from outside the run; empty if it has not begun."""
    return dict((progress_in(folder) or {}).get("outside") or {})


def require_ours(folder: Storage) -> None:
    """Raise UserError if the folder holds anything that no stage of ours left there."""
    if folder.is_local and os.path.islink(folder.path):
        raise UserError(
            f"{printable(folder.uri, 200)} is a symbolic link, and a stage clears its folder; "
            "remove the link, or set `run` or `storage` to another place"
        )
    if progress_in(folder) is not None:
        return
    first = _first_file(folder)
    if not first:
        return
    if (folder / MANIFEST).exists():
        read_manifest(folder)  # raises for what is none of ours
        return
    raise UserError(
        f"{printable(folder.uri, 200)} holds {printable(first)}, but no {MANIFEST} and no {PROGRESS}: no stage of this "
        "version made it, so nothing in it is removed; set `run` or `storage` to another place, or move it away"
    )


def clear(folder: Storage) -> None:
    """Remove all that is in a folder of ours, but for its mark. Raises UserError if not all of it is ours."""
    require_ours(folder)
    if (folder / MANIFEST).exists() and (foreign := foreign_files(folder)):
        raise UserError(
            f"{printable(folder.uri, 200)} must be made again, but {printable(foreign[0])} there is no file of it; "
            "move it away, and run again: nothing was removed"
        )
    if not _first_file(folder):
        return
    # Without inputs: nobody resumes what is being removed.
    write_progress(folder, "", None)
    (folder / MANIFEST).remove()
    folder.remove_files(name for name in _own_files(folder) if name != PROGRESS)
    if folder.is_local:
        for root, _, _ in os.walk(folder.path, topdown=False):
            with contextlib.suppress(OSError):  # not empty: another stage's
                os.rmdir(root)


def drop_damaged(folder: Storage, found: Difference) -> None:
    """Leave a finished folder as one that was killed before the damaged files were written: a resuming stage goes on.

    A model is as good as its training: without it the training is to be done again.
    """
    (folder / MANIFEST).remove()
    parts = [name.split("/") for name in (*found.missing, *found.damaged) if not is_page(name)]
    models = {"/".join(p[: p.index(MODEL)]) for p in parts if MODEL in p[:-1]}
    folder.remove_files([*found.damaged, *(posixpath.join(above, TRAINING) for above in models)])


def _first_file(folder: Storage) -> str | None:
    """The name of a file in the folder, or None."""
    if folder.is_local and os.path.lexists(folder.path) and not os.path.isdir(folder.path):
        return posixpath.basename(folder.path)
    return next(iter(_own_files(folder)), None)


def _own_files(folder: Storage) -> list[str]:
    """The names of all files that are not in another stage's folder below. A link is a file, and is not followed."""
    if not folder.is_local:
        return own_names(folder.names())
    found = []
    for root, folders, names in os.walk(folder.path):
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        found += [os.path.relpath(os.path.join(root, name), folder.path) for name in [*names, *links]]
    return own_names(sorted(found))
