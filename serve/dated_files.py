"""Our files in folders of days, FOLDER/2026-11-30/..., and which of them go when they are kept long enough.

Whoever removes goes by a file's name: what is not ours stays. Knows no content, no HTTP and no Ray.
"""

import contextlib
import os
import posixpath
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, Field

from data.errors import UserError, is_user_error
from data.printable import printable
from data.storage import Storage
from data.uris import kept_uri, shown_uri
from serve.answer_ids import day_of

DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
UNFINISHED = r"(\.[0-9a-f]{8}\.tmp)?"
"""What a process leaves that is killed while it writes."""
DAY_S = 86_400

KeptFolder = Annotated[str, Field(min_length=1), AfterValidator(lambda uri: Storage(kept_uri(uri)).uri)]
"""A local one with its whole path: the ingress may run in another folder."""
BegunAt = Callable[[str], float | None]
"""Name of a file below a day's folder -> seconds since 1970 from which its age counts; None = it is not ours."""


def moment(seconds: float) -> str:
    """As people and other tools read it: 2026-11-30T22:30:08+00:00."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def cause(error: Exception) -> str:
    """For the log, which has no text of people: an error that is not about files or networks may quote one."""
    return f"{type(error).__name__}: {printable(str(error))}" if is_user_error(error) else type(error).__name__


def require_writable(root: Storage, setting: str) -> None:
    """Raises UserError if a file cannot be written there and removed; `setting` names the place."""
    file = root / f".check-{secrets.token_hex(8)}"
    try:
        file.write_bytes(b"")
        file.remove()
    except Exception as error:  # each storage has its own: botocore's are no OSError
        cause = f"{type(error).__name__}: {printable(str(error), 120)}"
        remedy = "set it to a folder or a bucket that the endpoint may write to"
        raise UserError(f"{setting} {shown_uri(root.uri)} cannot be used ({cause}): {remedy}") from None


def expire(folder: Storage, begun_at: BegunAt, until_s: float | None) -> int:
    """Removes our files begun at `until_s` or before it, None = all, and how many; days after it are not listed."""
    last = None if until_s is None else day_of(max(0, until_s))
    num = 0
    for day in folders_in(folder):
        if not DAY.fullmatch(day) or (last is not None and day > last):
            continue
        expired = list(_expired(files_below(folder / day), begun_at, day, until_s))
        _remove(folder / day, expired)
        if folder.is_local and day < day_of(time.time() - DAY_S):  # nothing is written there any more
            remove_empty((folder / day).path)
        num += sum(not name.endswith(".tmp") for name in expired)
    return num


def _expired(found: Iterable[str], begun_at: BegunAt, day: str, until_s: float | None) -> Iterator[str]:
    for name in found:
        begun_s = begun_at(name)
        if begun_s is None or day_of(begun_s) != day:
            continue
        if until_s is None or begun_s <= until_s:
            yield name


def files_below(folder: Storage) -> list[str]:
    """Of all files below it."""
    folder.fs.invalidate_cache()  # another process writes there too
    return folder.names()


def folders_in(folder: Storage) -> list[str]:
    """Names of the folders in it."""
    fs = folder.fs
    fs.invalidate_cache()
    try:
        entries = fs.ls(folder.path, detail=True)
    except FileNotFoundError:
        return []
    return sorted(posixpath.basename(e["name"].rstrip("/")) for e in entries if e["type"] == "directory")


def _remove(folder: Storage, expired: Iterable[str]) -> None:
    """These files, and on a disk the folders inside that are empty without them."""
    expired = list(expired)
    folder.remove_files(expired)
    if folder.is_local:
        for name in {posixpath.dirname(name) for name in expired} - {""}:
            remove_empty(posixpath.join(folder.path, name))


def remove_empty(folder: str) -> None:
    with contextlib.suppress(OSError):  # not empty, or not there
        os.rmdir(folder)
