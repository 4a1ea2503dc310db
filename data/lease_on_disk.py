"""A lease on a disk: a lock on the folder, a hard link that fails if the name is taken, a rename that only one can win,
and the date of one's own file."""

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Iterator

from data.lease_state import Seen, settle


class LeaseOnDisk:
    def __init__(self, path: str):
        self._path, self._made_folder = path, False

    def read(self) -> Seen | None:
        return self._read(self._path)

    def create(self, content: bytes) -> Seen | None:
        self._made_folder = not os.path.isdir(os.path.dirname(self._path))
        with self._alone() as locked:
            made = self._write(content)
        return self._settled(content, locked) if made else None

    def _write(self, content: bytes) -> bool:
        """False if there is a lease already."""
        beside = self._beside()
        try:
            with open(beside, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.link(beside, self._path)
        except FileExistsError:
            return False
        except OSError as error:
            if not os.path.exists(beside):
                raise
            return self._write_without_links(content, error)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(beside)
        return True

    def _write_without_links(self, content: bytes, error: OSError) -> bool:
        """Some filesystems have no hard links: then others see the file empty for a moment, as somebody unknown's."""
        try:
            descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        except OSError:
            raise error from None
        with open(descriptor, "wb") as file:
            file.write(content)
        return True

    def _settled(self, content: bytes, locked: bool) -> Seen | None:
        if not locked:
            settle()
        now = self.read()
        return now if now and now.content == content else None

    @contextlib.contextmanager
    def _alone(self, make: bool = True) -> Iterator[bool]:
        """One change at a time: a file that is put aside and then back leaves its name free for a moment, which let a
        third process in. False where folders cannot be locked, as on NFS. Without `make` raises FileNotFoundError if
        the folder is gone."""
        folder = os.path.dirname(self._path)
        while True:
            if make:
                os.makedirs(folder, exist_ok=True)
            try:
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                if make:
                    continue  # removed just now
                raise
            try:
                locked = True
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                except OSError:
                    locked = False
                if os.fstat(descriptor).st_nlink:
                    yield locked
                    return
            finally:
                os.close(descriptor)

    def renew(self, seen: Seen, content: bytes) -> Seen | None:
        """By its date: whoever has renamed our file away meanwhile is not disturbed."""
        try:
            descriptor = os.open(self._path, os.O_RDWR)
        except FileNotFoundError:
            return None
        with open(descriptor, "rb+") as file:
            if file.read() != seen.content:
                return None
            now = time.time_ns()
            os.utime(descriptor, ns=(now, now))
            return Seen(seen.content, str(os.fstat(descriptor).st_mtime_ns), now / 1e9)

    def take(self, seen: Seen, content: bytes) -> Seen | None:
        with self._alone() as locked:
            made = self._put_aside(seen, whatever_date=False) and self._write(content)
        return self._settled(content, locked) if made else None

    def remove(self, seen: Seen) -> None:
        with contextlib.suppress(FileNotFoundError), self._alone(make=False):
            self._put_aside(seen, whatever_date=True)
            if self._made_folder:
                with contextlib.suppress(OSError):
                    os.rmdir(os.path.dirname(self._path))  # nothing else has come into it

    def _put_aside(self, seen: Seen, whatever_date: bool) -> bool:
        """Remove the file if it is the one that was seen: only one process can rename it."""

        def is_seen(path: str) -> bool:
            now = self._read(path)
            return now is not None and now.content == seen.content and (whatever_date or now.mark == seen.mark)

        if not is_seen(self._path):
            return False
        beside = self._beside()
        try:
            os.rename(self._path, beside)
        except FileNotFoundError:
            return False
        # Its owner may have come back to life, or, where nothing could be locked, another may have taken it.
        if not (is_ours := is_seen(beside)):
            with contextlib.suppress(FileExistsError):
                os.link(beside, self._path)
        os.remove(beside)
        return is_ours

    def _beside(self) -> str:
        return f"{self._path}.{secrets.token_hex(4)}.tmp"

    def _read(self, path: str) -> Seen | None:
        try:
            with open(path, "rb") as file:  # opening asks a network's filesystem for the true date
                content, facts = file.read(), os.fstat(file.fileno())
        except FileNotFoundError:
            return None
        return Seen(content, str(facts.st_mtime_ns), facts.st_mtime)
