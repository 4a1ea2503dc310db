"""One URI in, a filesystem and a path out; what is published appears whole or not at all. Knows nothing of what it stores.

Any fsspec URI: a local path, `s3://`, `gs://`, `hf://`, `memory://`.
"""

import json
import os
import posixpath
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow.fs
import pyarrow.parquet
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem


@dataclass(frozen=True)
class Storage:
    """A folder on some filesystem, named by `uri`; cheap to make, travels to workers as its URI."""

    uri: str

    def __post_init__(self) -> None:
        if "://" not in self.uri:
            object.__setattr__(self, "uri", os.path.abspath(os.path.expanduser(self.uri)))

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        # A listing cache makes a resumed job see files that another worker has deleted.
        options = {"use_listings_cache": False} if self.uri.startswith("s3://") else {}
        return url_to_fs(self.uri, **options)[0]

    @property
    def path(self) -> str:
        return str(url_to_fs(self.uri)[1])

    @property
    def arrow_fs(self) -> pyarrow.fs.FileSystem:
        """The filesystem for Ray Data, Ray Train and pyarrow, to be used with `path`."""
        fs = self.fs
        return pyarrow.fs.LocalFileSystem() if isinstance(fs, LocalFileSystem) else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def __truediv__(self, name: str) -> "Storage":
        return Storage(posixpath.join(self.uri, name))

    def exists(self) -> bool:
        return bool(self.fs.exists(self.path))

    def files(self, suffix: str = "") -> list[str]:
        """Paths of all files below, sorted; an empty list if there is no such folder."""
        return sorted(p for p in self.fs.find(self.path) if p.endswith(suffix)) if self.exists() else []

    def remove(self) -> None:
        """Remove the folder or file and everything below it; nothing happens if it is not there."""
        if self.exists():
            self.fs.rm(self.path, recursive=True)

    def write_bytes(self, content: bytes) -> None:
        """Write the whole file atomically: rename on a disk, one PUT on an object store."""
        fs, path = self.fs, self.path
        if not isinstance(fs, LocalFileSystem):
            fs.pipe_file(path, content)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        beside = f"{path}.{secrets.token_hex(4)}.tmp"
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)

    def write_json(self, value: Any) -> None:
        self.write_bytes(json.dumps(value, indent=2, ensure_ascii=False).encode())

    def read_json(self) -> Any:
        """Raises FileNotFoundError, or ValueError naming the file if it is no JSON."""
        with self.fs.open(self.path, "rb") as file:
            content = file.read()
        try:
            return json.loads(content)
        except ValueError as error:
            raise ValueError(f"{self.uri} is no JSON ({error}); delete it to have it made again") from None

    def upload(self, folder: str) -> None:
        """Copy a local folder's content here, file by file, replacing what was there."""
        self.remove()
        for root, _, names in os.walk(folder):
            for name in names:
                local = os.path.join(root, name)
                remote = posixpath.join(self.path, os.path.relpath(local, folder).replace(os.sep, "/"))
                self.fs.makedirs(posixpath.dirname(remote), exist_ok=True)
                self.fs.put_file(local, remote)

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
