"""Live records on any storage: requested and measured values of answers, without texts. Files appear whole or not.

    STORE/DAY/20261130T223008Z-0123abcd.jsonl   the records of a minute, of all teams

The name of a file has the time of its first record, and whoever removes goes by it. Knows no HTTP and no Ray.
"""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import Field, model_validator

from data.bounds import Share, Whole
from data.errors import UserError
from data.record import Record
from data.storage import Storage
from serve.answer_ids import day_of
from serve.dated_files import DAY_S, UNFINISHED, KeptFolder, expire, require_writable

STAMP = "%Y%m%dT%H%M%SZ"
FILE = re.compile(rf"(?P<stamp>\d{{8}}T\d{{6}}Z)-[0-9a-f]{{8}}\.jsonl{UNFINISHED}")


class LiveSettings(Record):
    """Requested and measured values of answers in production, kept for `jobs.report --live`; no texts."""

    store: KeptFolder | None = None
    """Folder (any URI) for records of rated answers: values, counts, team and model; null = none are kept. All nodes
    with an ingress must share it."""
    share: Share = 0
    """Of the requests whose callers ask for no rating, the share that is rated in the background for a record; 0 = only
    answers that callers have rated (score, best_of)."""
    retention_days: Whole = Field(90, ge=1, le=36_500)
    """How long a record is kept, in days."""

    @model_validator(mode="after")
    def _complete(self) -> "LiveSettings":
        if self.share and self.store is None:
            raise UserError(f"share is {self.share:g}, but store is null: set store to a folder, or share to 0")
        return self

    @property
    def retention_s(self) -> int:
        return self.retention_days * DAY_S


@dataclass(frozen=True)
class LiveFile:
    """One file to write: a second attempt replaces the first, so that no record is there twice."""

    name: str
    lines: Sequence[str]

    @classmethod
    def of(cls, lines: Sequence[str], first_s: float) -> "LiveFile":
        """`first_s`: when the first record was made."""
        stamp = datetime.fromtimestamp(first_s, UTC).strftime(STAMP)
        return cls(f"{day_of(first_s)}/{stamp}-{secrets.token_hex(4)}.jsonl", lines)


class LiveStore:
    """The files below one folder."""

    def __init__(self, uri: str):
        self._root = Storage(uri)

    def require_writable(self) -> None:
        """Raises UserError if a file cannot be written there and removed."""
        require_writable(self._root, "live.store")

    def put(self, file: LiveFile) -> None:
        (self._root / file.name).write_bytes("".join(f"{line}\n" for line in file.lines).encode())

    def sweep(self, settings: LiveSettings, now_s: float) -> int:
        """Removes the files that are kept long enough; how many."""
        return expire(self._root, _begun_s, now_s - settings.retention_s)


def _begun_s(name: str) -> float | None:
    found = FILE.fullmatch(name)
    try:
        return None if found is None else datetime.strptime(found["stamp"], STAMP).replace(tzinfo=UTC).timestamp()
    except ValueError:  # digits that are no time
        return None
