"""Local copies of models from an object store: one for each content, in a folder of this user alone, bounded in size.

A process holds a shared lock (`flock`) on every copy that it asked for, until it ends: what is locked is never removed.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from data.errors import UserError
from data.storage import Storage

SIZE_VARIABLE = "STEERLM_MODEL_CACHE_GIB"
"""Environment variable: above this size, copies that nobody uses are removed, those unused for longest first."""
DEFAULT_SIZE_GIB = 200.0
UNFINISHED = ".tmp"

_held: dict[str, int] = {}
"""Copy -> descriptor of the folder, with our lock."""
_guard = threading.Lock()


def local_copy(storage: Storage) -> str:
    """A local folder with the content of `storage`: the folder itself if it is local.

    Raises UserError if there is no folder that only this user can write.
    """
    if storage.is_local:
        return storage.path
    files = storage.files()
    content = "".join(f"{file} {storage.fs.checksum(file)}" for file in files)
    cache = _cache_folder()
    target = cache / hashlib.sha256(f"{storage.uri} {content}".encode()).hexdigest()[:24]
    with _guard:
        while not _hold(target):
            _download(storage, target, sum(int(storage.fs.size(file) or 0) for file in files))
    return str(target)


def _download(storage: Storage, target: Path, size: int) -> None:
    # Several processes of a node may need it at once: each downloads to its own folder, the first rename wins.
    with _locked(target.parent):
        _make_room(target.parent, size)
        beside = Path(tempfile.mkdtemp(suffix=UNFINISHED, dir=target.parent))
        descriptor = _lock_of(beside, fcntl.LOCK_SH)
    try:
        storage.download(str(beside))
        beside.rename(target)
    except OSError:
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _hold(folder: Path) -> bool:
    """Is there such a copy? It is ours to read until this process ends."""
    with contextlib.suppress(KeyError, OSError):
        if os.path.samestat(os.fstat(_held[str(folder)]), os.stat(folder)):
            os.utime(folder)
            return True
    descriptor = _lock_of(folder, fcntl.LOCK_SH)
    if descriptor is None:
        return False
    if before := _held.get(str(folder)):
        os.close(before)
    _held[str(folder)] = descriptor
    os.utime(folder)
    return True


def _lock_of(folder: Path, kind: int) -> int | None:
    """A descriptor that holds the lock; None if the folder is not there, or has no such lock for us at once."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, kind)
        # It may have been removed while we waited.
        if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
            return descriptor
    os.close(descriptor)
    return None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = _lock_of(folder, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _make_room(cache: Path, size: int) -> None:
    """Remove what nobody uses: unfinished copies, and the oldest until `size` bytes more fit."""
    sizes = {folder: _size(folder) for folder in cache.iterdir() if folder.is_dir() and not folder.is_symlink()}
    free = _limit_bytes() - size - sum(sizes.values())
    for folder in sorted(sizes, key=_last_use):
        if free >= 0 and folder.suffix != UNFINISHED:
            continue
        descriptor = _lock_of(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if descriptor is None:
            continue
        gone = folder.with_suffix(UNFINISHED)
        with contextlib.suppress(OSError):
            folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        os.close(descriptor)
        free += sizes[folder]


def _last_use(folder: Path) -> float:
    with contextlib.suppress(OSError):
        return folder.stat().st_mtime
    return 0.0


def _size(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_size
    return total


def _limit_bytes() -> float:
    text = os.environ.get(SIZE_VARIABLE, "")
    try:
        limit = float(text or DEFAULT_SIZE_GIB)
    except ValueError:
        limit = -1.0
    if not limit >= 0:
        raise UserError(f"the environment variable {SIZE_VARIABLE} is {text[:40]!r}; write GiB, a number from 0 on")
    return limit * 2**30


def _cache_folder() -> Path:
    """Made if needed, and checked; where the home cannot be written, a folder of this user in the temporary one."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    try:
        return _private(home / "steerlm")
    except OSError:
        return _private(Path(tempfile.gettempdir()) / f"steerlm-{os.getuid()}")


def _private(root: Path) -> Path:
    """`root`/models, with `root` for this user alone; raises UserError if somebody else made `root`, and OSError."""
    root.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        root.mkdir(mode=0o700)
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UserError(
            f"the cache of models, {root}, is not a folder of this user (uid {os.getuid()}, it is of {found.st_uid}), "
            "so somebody else could change the models in it; remove it, or set XDG_CACHE_HOME to a folder of yours"
        )
    if found.st_mode & 0o077:
        root.chmod(0o700)
    models = root / "models"
    models.mkdir(exist_ok=True)
    return models
