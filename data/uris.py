"""Which URIs there can be: their spelling, their protocol, and the package it needs. Reads and writes nothing.

`Uri` and `KeptUri` are the types of settings; `filesystem` is what `data.storage` opens all of them with.
"""

import functools
import re
from collections.abc import Mapping
from typing import Annotated, Any, cast

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import known_implementations
from pydantic import AfterValidator

from data.errors import UserError, nearest
from data.printable import printable

PACKAGES: Mapping[str, str] = {
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("abfs", "abfss", "az", "adl"), "adlfs"),
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("sftp", "ssh"), "paramiko"),
    **dict.fromkeys(("http", "https"), "aiohttp"),
    **{"hf": "huggingface_hub", "smb": "smbprotocol", "webdav": "webdav4", "oss": "ossfs", "oci": "ocifs"},
}
"""Protocol -> what pip installs for it."""
BUCKETS = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "hf")
"""Protocols whose first part must be there: a bucket, a container, an owner."""
LOCAL = ("file", "local")
COMMON = ("s3", "gs", "abfs", "hf", "https", "file")
ONE_SLASH = re.compile(rf"({'|'.join((*PACKAGES, *LOCAL, 'memory', 'ftp', 'hdfs'))}):(?!//)", re.IGNORECASE)
KEPT = (*BUCKETS, *LOCAL, "sftp", "ssh", "smb", "hdfs", "webdav", "oss", "oci")
"""Protocols to which a run or an export may be written."""
CREDENTIAL = re.compile(r"(https?:/+)[^\s/@]{1,1024}@|(:/+)[^\s/@:]{0,256}:(?!\d{1,5}/)\S{0,1024}@", re.IGNORECASE)
QUERY = re.compile(r"[?#][^/]*=")
NETWORK = ("httpx", "httpx2", "httpcore", "requests", "aiohttp", "huggingface_hub")
"""Packages whose errors are those of a network or of a server, and no OSError."""


def shown_uri(uri: str) -> str:
    """A URI as a message shows it: without a credential before its host, on one line, at most some 100 characters.

    The end of a path stays, which names the file; that of a query goes, which may be a signature.
    """
    shown = CREDENTIAL.sub(lambda found: f"{found[1] or found[2]}...@", uri)
    cut = len(shown) > 100 and not QUERY.search(shown)
    return printable(f"{shown[:45]}...{shown[-52:]}" if cut else shown, 100)


def checked_uri(uri: str) -> str:
    """`uri`, a path or a URI; raises UserError if no file can have it."""
    if "\0" in uri:
        raise UserError(f"{shown_uri(uri)} has a null character, which no name of a file has")
    if found := ONE_SLASH.match(uri):
        protocol = found[1].lower()
        rest = uri[found.end() :].lstrip("/")
        path = shown_uri(f"/{rest}" if protocol in LOCAL else f"{protocol}://{rest}")
        raise UserError(
            f"{shown_uri(uri)} is neither a URI nor a plain path: write {path}, or ./ before a folder of that name"
        )
    if "://" in uri:
        for part in uri.split("::"):
            _require_known(part, uri)
    return uri


def kept_uri(uri: str) -> str:
    """The same for a place to write to, which must outlast this process and be seen by others."""
    checked_uri(uri)
    if "://" not in uri:
        return uri
    protocol = _protocol(uri)
    if protocol not in KEPT or "::" in uri:
        why = "is gone when the process ends" if protocol == "memory" else "is no place to write to"
        raise UserError(f"{shown_uri(uri)} {why}; take a folder, or a bucket such as s3://bucket/prefix")
    return uri


def require_installed(uri: str) -> None:
    """Raise UserError with the line to install if the package of the protocol is not there."""
    for part in uri.split("::") if "://" in uri else ():
        protocol = _protocol(part)
        try:
            fsspec.get_filesystem_class(protocol)
        except ImportError as error:
            package = PACKAGES.get(protocol)
            how = f"`pip install {package}` on every machine that runs this" if package else printable(str(error), 150)
            raise UserError(f"{shown_uri(uri)} needs a package that is not installed here: {how}") from None


def filesystem(uri: str, options: Mapping[str, Any]) -> tuple[fsspec.AbstractFileSystem, str]:
    """What opens `uri`, and the path in it. Raises UserError for a protocol that is not known or not installed."""
    if "://" not in uri:
        return LocalFileSystem(), str(LocalFileSystem._strip_protocol(uri))  # "a::b" is the name of a file
    require_installed(uri)
    try:
        fs, path = url_to_fs(uri, **options)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"{shown_uri(uri)} cannot be opened: {printable(str(error), 150)}; correct the URI") from None
    remote = _protocol(uri) not in (*LOCAL, "memory", "s3", "s3a")
    return (cast(fsspec.AbstractFileSystem, _Remote(fs, uri)) if remote else fs), str(path)


def local_path(uri: str) -> str:
    """`file:///a` as /a; anything else as it is."""
    protocol, found, path = uri.partition("://")
    return path if found and protocol in LOCAL and path.startswith("/") else uri


def _protocol(part: str) -> str:
    return part.partition("://")[0]


def _require_known(part: str, uri: str) -> None:
    protocol, _, rest = part.partition("://")
    if protocol not in known_implementations and protocol not in fsspec.registry:
        lower = protocol.lower()
        fix = (
            f"write {lower}://, in small letters"
            if lower in known_implementations
            else f"there are {', '.join(COMMON)}{nearest(protocol, COMMON)}; a local path has no ://"
        )
        raise UserError(f"{shown_uri(uri)} has the protocol {printable(protocol, 20)!r}, which is not known: {fix}")
    if protocol in BUCKETS and not re.match(r"[^/]", rest):
        raise UserError(f"{shown_uri(uri)} names no bucket; write {protocol}://bucket/prefix")
    if protocol in LOCAL and not rest.startswith("/"):
        raise UserError(f"{shown_uri(uri)} has no absolute path; write {protocol}:///folder, or the path alone")


class _Remote:
    """A filesystem over HTTP: an error of its network is a UserError that names the URI."""

    def __init__(self, fs: fsspec.AbstractFileSystem, uri: str):
        self._fs, self._uri = fs, uri

    def __getattr__(self, name: str) -> Any:
        if name in ("_fs", "_uri"):  # while it is unpickled
            raise AttributeError(name)
        found = getattr(self._fs, name)
        if not callable(found):
            return found

        @functools.wraps(found)
        def asked(*args: Any, **kwargs: Any) -> Any:
            try:
                return found(*args, **kwargs)
            except Exception as error:
                if isinstance(error, OSError) or type(error).__module__.partition(".")[0] not in NETWORK:
                    raise
                reason = printable(str(error) or type(error).__name__, 150)
                raise UserError(
                    f"cannot reach {shown_uri(self._uri)} ({reason}); check the address, the network and the access"
                ) from error

        return asked


Uri = Annotated[str, AfterValidator(checked_uri)]
"""A path or a URI to read."""
KeptUri = Annotated[str, AfterValidator(kept_uri)]
"""A path or a URI to write to."""
