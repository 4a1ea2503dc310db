"""One URI in, a filesystem and a path out; files appear whole or not at all. Knows nothing of what it stores.

Any fsspec URI: a local path, `s3://`, `gs://`, `hf://`, `memory://`.
"""

import contextlib
import hashlib
import json
import os
import posixpath
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow.fs
import pyarrow.parquet
from fsspec.implementations.local import LocalFileSystem

from data.durable import exchange, make_folders, sync, sync_all
from data.errors import UserError
from data.uris import checked_uri, filesystem, local_path

S3_OPTIONS: dict[str, Any] = {
    # A listing cache makes a resumed job see files that another worker has deleted.
    "use_listings_cache": False,
    # Ten attempts with growing pauses outlast S3's "reduce your request rate"; botocore itself gives up after five.
    "config_kwargs": {"retries": {"mode": "standard", "max_attempts": 10}, "connect_timeout": 10, "read_timeout": 60},
}
"""Endpoint and keys are in the environment: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE."""


def options(uri: str) -> dict[str, Any]:
    """What fsspec needs besides the URI."""
    return S3_OPTIONS if uri.startswith(("s3://", "s3a://")) else {}


def content_checksum(tag: bytes) -> str:
    """16 hex digits of one file whose content has this digest, or this checksum of its store."""
    return hashlib.sha256(b" " + tag).hexdigest()[:16]


class Unwritable(OSError):
    """A file could not be written; what was there before is whole."""

    def __str__(self) -> str:
        return str(self.args[-1])


@dataclass(frozen=True)
class Storage:
    """A folder on some filesystem, named by `uri`; cheap to make, travels to workers as its URI."""

    uri: str

    def __post_init__(self) -> None:
        uri = local_path(checked_uri(self.uri))
        if uri != self.uri or "://" not in uri:
            object.__setattr__(self, "uri", os.path.abspath(os.path.expanduser(uri)))

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        return filesystem(self.uri, options(self.uri))[0]

    @property
    def path(self) -> str:
        return filesystem(self.uri, options(self.uri))[1]

    @property
    def arrow_fs(self) -> pyarrow.fs.FileSystem:
        """The filesystem for Ray Data, Ray Train and pyarrow, to be used with `path`."""
        fs = self.fs
        return (
            pyarrow.fs.LocalFileSystem()
            if isinstance(fs, LocalFileSystem)
            else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))
        )

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def __truediv__(self, name: str) -> "Storage":
        return Storage(posixpath.join(self.uri, name))

    def exists(self) -> bool:
        return bool(self.fs.exists(self.path))

    def size(self) -> int:
        """Of the file, in bytes."""
        return int(self.fs.info(self.path)["size"])

    def files(self, suffix: str = "") -> list[str]:
        """Paths of all files below, sorted, by one listing; an empty list if there is no such folder."""
        return sorted(p for p in self.fs.find(self.path) if p.endswith(suffix))

    def names(self, suffix: str = "") -> list[str]:
        """The same files, as names relative to this folder."""
        return [posixpath.relpath(path, self.path) for path in self.files(suffix)]

    def remove(self) -> None:
        """Remove the folder or file and everything below it; nothing happens if it is not there."""
        if self.exists():
            self.fs.rm(self.path, recursive=True)

    def remove_files(self, names: Iterable[str]) -> None:
        """Remove these files of the folder; those that are not there are no error."""
        fs, paths = self.fs, [posixpath.join(self.path, name) for name in names]
        if not isinstance(fs, LocalFileSystem):
            # An object store removes what is not there, too, and many at a time.
            if paths:
                fs.rm(paths)
            return
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)

    def write_bytes(self, content: bytes) -> None:
        """Write the whole file atomically: rename on a disk, one PUT on an object store. Raises Unwritable."""
        with self._whole() as beside:
            if not beside:
                self.fs.pipe_file(self.path, content)
                return
            with open(beside, "wb") as file:
                file.write(content)

    def put(self, local: str) -> None:
        """Copy a local file here; it appears whole or not at all. Raises Unwritable."""
        with self._whole() as beside:
            if beside:
                shutil.copyfile(local, beside)
            else:
                self.fs.put_file(local, self.path)

    @contextlib.contextmanager
    def written(self) -> Iterator[str]:
        """A local path to write; when the block has ended, it is this file, and whole. Raises Unwritable."""
        with self._whole() as beside, tempfile.TemporaryDirectory(prefix="steerlm-upload-") as folder:
            path = beside or os.path.join(folder, "file")
            yield path
            if not beside:
                self.fs.put_file(path, self.path)

    @contextlib.contextmanager
    def _whole(self) -> Iterator[str]:
        """A local path to write, which is renamed to this file at the end; "" on an object store. Raises Unwritable.

        When the block has ended, the file outlasts a loss of power: so what is written later may say that it is there.
        """
        beside = f"{self.path}.{secrets.token_hex(4)}.tmp" if self.is_local else ""
        try:
            if beside:
                make_folders(os.path.dirname(self.path))
            yield beside
            if beside:
                sync(beside)
                os.replace(beside, self.path)
                sync(os.path.dirname(self.path))
        except OSError as error:
            reason = error.strerror or str(error)
            raise Unwritable(
                error.errno,
                f"cannot write {self.uri}: {reason}; free space or get access there, or set `storage` to another place",
            ) from error
        finally:
            if beside:
                with contextlib.suppress(OSError):
                    os.remove(beside)

    def write_json(self, value: Any) -> None:
        self.write_bytes(json.dumps(value, indent=2, ensure_ascii=False).encode(errors="backslashreplace"))

    def read_text(self) -> str:
        with self.fs.open(self.path, "rb") as file:
            return bytes(file.read()).decode()

    def read_json(self) -> Any:
        """Raises FileNotFoundError, or UserError naming the file if it is no JSON."""
        with self.fs.open(self.path, "rb") as file:
            content = file.read()
        try:
            return json.loads(content)
        except ValueError as error:
            raise UserError(f"{self.uri} is no JSON ({error}); delete it to have it rebuilt") from None

    def checksum(self) -> str:
        """16 hex digits of the content of the file, or of all files below.

        On a disk they depend on every byte, elsewhere on the store's own checksum (S3: the ETag). A copy or a touched
        file has the same ones, so that a new date alone repeats nothing.
        """
        digest = hashlib.sha256()
        files = [("", self)] if self.fs.isfile(self.path) else [(name, self / name) for name in self.names()]
        for name, file in files:
            digest.update(f"{name} ".encode())
            if file.is_local:
                with open(file.path, "rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
            else:
                digest.update(str(file.fs.checksum(file.path)).encode())
        return digest.hexdigest()[:16]

    def upload(self, folder: str) -> None:
        """Copy a local folder's content here, replacing what was there: on a disk at once, when all is copied.

        An object store cannot rename: there each file is replaced by itself, and what is left over goes last.
        """
        names = Storage(folder).names()
        if self.is_local:
            with self.replaced() as beside:
                for name in names:
                    (beside / name).put(os.path.join(folder, name))
            return
        for name in names:
            (self / name).put(os.path.join(folder, name))
        self.remove_files(set(self.names()) - set(names))

    @contextlib.contextmanager
    def replaced(self) -> Iterator["Storage"]:
        """A folder to fill; when the block ends, it takes the place of this one. If it raises, this one stays.

        Raises Unwritable if the new folder cannot take the place: then both are kept. An object store cannot rename:
        there the old folder goes at once, and each file appears whole when written. Write last the file that marks the
        folder as complete.
        """
        if not self.is_local:
            self.remove()
            yield self
            return
        beside = f"{self.path.rstrip('/')}.{secrets.token_hex(4)}.tmp"
        make_folders(beside)
        try:
            yield Storage(beside)
            sync_all(beside)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        self.take(Storage(beside))

    def take(self, folder: "Storage") -> None:
        """`folder`, on the same disk, takes the place of this one. Raises Unwritable: then both are kept."""
        before = f"{self.path.rstrip('/')}.{secrets.token_hex(4)}.old"
        try:
            exchange(self.path, folder.path, before)
        except OSError as error:
            kept = " and ".join(path for path in (folder.path, before) if os.path.lexists(path))
            raise Unwritable(
                error.errno,
                f"cannot replace {self.uri}: {error.strerror or error}; nothing is lost, {kept} is kept; "
                "get access there, or set `storage` to another place",
            ) from error
        shutil.rmtree(before, ignore_errors=True)

    def download(self, folder: str) -> str:
        """A local folder with this one's content: itself if it is local, else a copy in `folder`."""
        if self.is_local:
            return self.path
        self.fs.get(self.path.rstrip("/") + "/", folder.rstrip("/") + "/", recursive=True)
        return folder

    def tables(self) -> Iterator[pyarrow.Table]:
        """All Parquet files below, one at a time, in name order."""
        for path in self.files(".parquet"):
            yield pyarrow.parquet.read_table(path, filesystem=self.arrow_fs)
