"""A lease as it was seen in its place, and what each kind of storage must be able to change about it."""

import time
from dataclasses import dataclass
from typing import Protocol

SETTLE_S = 0.5
"""Before a new lease is looked at again: a store that checks and writes in two steps may have let two in."""


@dataclass(frozen=True)
class Seen:
    """A lease as it was at one time."""

    content: bytes
    mark: str
    """Another after every change."""
    renewed_at: float
    """By the storage's clock, seconds since 1970."""


class LeaseFile(Protocol):
    """All but `read` return None, or do nothing, if the file is not as it was seen."""

    def read(self) -> Seen | None: ...

    def create(self, content: bytes) -> Seen | None: ...

    def renew(self, seen: Seen, content: bytes) -> Seen | None: ...

    def take(self, seen: Seen, content: bytes) -> Seen | None: ...

    def remove(self, seen: Seen) -> None: ...


def settle() -> None:
    time.sleep(SETTLE_S)
