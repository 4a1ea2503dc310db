"""Local copies of models from an object store: one for each content, in a folder of this user alone, bounded in size.

    models/0123abcd.tmp   while one process downloads it, under an exclusive lock (`flock`); the others of the node wait
    models/0123abcd       the whole copy; every process that asked for it holds a shared lock on it until it ends

What is locked is never removed. The kernel frees the lock of a process that is killed: the next one goes on with the
files that are whole. A reader of texts asks for `is_text_file` only, so that it never fetches weights.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from data.durable import sync
from data.errors import UserError
from data.storage import Storage
from data.uris import shown_uri

SIZE_VARIABLE = "STEERLM_MODEL_CACHE_GIB"
"""Environment variable: above this size, copies that nobody uses are removed, those unused for longest first."""
DEFAULT_SIZE_GIB = 200.0
UNFINISHED, PART = ".tmp", ".part"
"""Ends of the names of a copy that is not whole, and of a file in it that is not."""
STREAMS = 8
"""Files that are downloaded at the same time."""
LINE_EVERY_S, FIRST_LINE_S, POLL_S = 30.0, 2.0, 0.2
"""A download, and who waits for it, print so often; a wait that is over at once prints nothing."""
TEXT_FILES = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".spm", ".vocab")
TEMPLATES = "additional_chat_templates/"
INDEX = ".safetensors.index.json"

_held: dict[str, int] = {}
"""Copy -> descriptor of the folder, with our lock."""
_guard = threading.Lock()


def is_text_file(name: str) -> bool:
    """Does a file of a model folder belong to its configuration or tokenizer?"""
    return "/" not in name.removeprefix(TEMPLATES) and name.endswith(TEXT_FILES) and not name.endswith(INDEX)


def is_model_file(name: str) -> bool:
    """Is it one that a model is loaded from? Not the same weights in other formats, nor anything else beside them."""
    weights = name.endswith((".safetensors", INDEX)) and "/" not in name and not name.startswith("consolidated")
    return weights or is_text_file(name)


def local_copy(storage: Storage, wanted: Callable[[str], bool] = is_model_file) -> str:
    """A local folder with the files of `storage` that are `wanted`: the folder itself if it is local.

    One process of a node downloads, the others wait for it. Raises UserError if there is no folder that only this user
    can write, or nothing to download.
    """
    if storage.is_local:
        return storage.path
    names = [name for name in storage.names() if wanted(name)]
    if not names:
        raise UserError(f"no readable model at {shown_uri(storage.uri)}: no file of a model is there")
    content = "".join(f"{name} {storage.fs.checksum((storage / name).path)}" for name in names)
    sizes = {name: int(storage.fs.size((storage / name).path) or 0) for name in names}
    cache = _cache_folder()
    target = cache / hashlib.sha256(f"{storage.uri} {content}".encode()).hexdigest()[:24]
    with _guard:
        while not _hold(target):
            _fetch(storage, target, sizes)
    return str(target)


def _fetch(storage: Storage, target: Path, sizes: Mapping[str, int]) -> None:
    """Download `target`, or wait until another process has, or has given up."""
    beside = target.with_suffix(UNFINISHED)
    beside.mkdir(exist_ok=True)
    descriptor = _turn(beside, storage.uri, sum(sizes.values()))
    if descriptor is None or target.is_dir():
        if descriptor is not None:
            shutil.rmtree(beside, ignore_errors=True)
            os.close(descriptor)
        return
    try:
        with _locked(target.parent):
            _make_room(target.parent, sum(sizes.values()))
        _download(storage, beside, sizes)
        beside.rename(target)
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # ours to read
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        os.close(descriptor)
        raise
    if before := _held.get(str(target)):
        os.close(before)
    _held[str(target)] = descriptor


def _turn(beside: Path, uri: str, size: int) -> int | None:
    """A descriptor of the folder with the lock of the one who downloads it; None if it is gone after the wait."""
    try:
        descriptor = os.open(beside, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    next_line_s = time.monotonic() + FIRST_LINE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            # Renamed, it is whole; who downloaded it keeps it locked, as a reader, for as long as its process lives.
            if not _is_open_at(descriptor, beside):
                os.close(descriptor)
                return None
            if time.monotonic() > next_line_s:
                what = f"process {os.getpid()} waits for another one of this node, which downloads {shown_uri(uri)}"
                print(f"{what}: {_so_far(beside, size)}", flush=True)
                next_line_s = time.monotonic() + LINE_EVERY_S
            time.sleep(POLL_S)
        except OSError as error:
            os.close(descriptor)
            raise UserError(
                f"the cache of models, {beside.parent}, is on a file system without locks ({error.strerror}); set "
                "XDG_CACHE_HOME to a folder on a local disk"
            ) from None
    if _is_open_at(descriptor, beside):
        return descriptor
    os.close(descriptor)
    return None


def _is_open_at(descriptor: int, path: Path) -> bool:
    """Is the folder still there under this name?"""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def _download(storage: Storage, beside: Path, sizes: Mapping[str, int]) -> None:
    """Fill the folder; files of the right size are there already: an earlier download of the same content was killed.
    Raises OSError."""
    total, started = sum(sizes.values()), time.monotonic()
    with ThreadPoolExecutor(STREAMS, thread_name_prefix="download") as pool:
        pending = {pool.submit(_download_file, storage / name, beside / name, size) for name, size in sizes.items()}
        while pending:
            done, pending = wait(pending, timeout=LINE_EVERY_S, return_when=FIRST_EXCEPTION)
            if any(future.exception() for future in done):
                pool.shutdown(wait=False, cancel_futures=True)
            for future in done:
                future.result()
            if pending:
                print(f"downloads {shown_uri(storage.uri)}: {_so_far(beside, total)}", flush=True)
    if time.monotonic() - started > LINE_EVERY_S:
        seconds = time.monotonic() - started
        print(f"downloaded {shown_uri(storage.uri)}: {total / 2**30:.1f} GiB in {seconds:.0f} s", flush=True)


def _download_file(source: Storage, path: Path, size: int) -> None:
    if path.is_file() and path.stat().st_size == size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + PART)
    source.fs.get_file(source.path, str(part))
    if part.stat().st_size != size:
        raise OSError(f"{shown_uri(source.uri)} has {part.stat().st_size:,} bytes of {size:,}: it changed meanwhile")
    sync(str(part))
    part.replace(path)


def _so_far(beside: Path, size: int) -> str:
    return f"{_size(beside) / 2**30:.2f} of {size / 2**30:.2f} GiB"


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
        gone = folder.with_suffix(f".old{UNFINISHED}")  # not the name of a download of the same
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
