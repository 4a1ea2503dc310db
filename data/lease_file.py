"""The file of a lease: each change happens only if the file is still as it was seen, by what each storage offers.

Disks and S3 have files of their own. Elsewhere: create-if-absent where the filesystem has it, else look, write, look
again.
"""

import time

from data.lease_on_disk import LeaseOnDisk
from data.lease_on_s3 import LeaseOnS3
from data.lease_state import LeaseFile, Seen, settle
from data.storage import Storage


def lease_file(file: Storage) -> LeaseFile:
    if file.is_local:
        return LeaseOnDisk(file.path)
    return LeaseOnS3(file) if file.uri.startswith("s3://") else _Elsewhere(file)


class _Elsewhere:
    def __init__(self, file: Storage):
        self._file = file

    def read(self) -> Seen | None:
        try:
            content = bytes(self._file.fs.cat_file(self._file.path))
        except FileNotFoundError:
            return None
        return Seen(content, content.hex(), time.time())

    def create(self, content: bytes) -> Seen | None:
        if self.read() is not None:
            return None
        try:
            self._file.fs.pipe_file(self._file.path, content, mode="create")
        except FileExistsError:
            return None
        except (TypeError, NotImplementedError):
            self._file.fs.pipe_file(self._file.path, content)
        return self._settled(content)

    def renew(self, seen: Seen, content: bytes) -> Seen | None:
        now = self.read()
        if now is None or now.content != seen.content:
            return None
        self._file.fs.pipe_file(self._file.path, content)
        return Seen(content, content.hex(), time.time())

    def take(self, seen: Seen, content: bytes) -> Seen | None:
        return self._settled(content) if self.renew(seen, content) else None

    def remove(self, seen: Seen) -> None:
        now = self.read()
        if now is not None and now.content == seen.content:
            self._file.fs.rm_file(self._file.path)

    def _settled(self, content: bytes) -> Seen | None:
        settle()
        now = self.read()
        return now if now and now.content == content else None
