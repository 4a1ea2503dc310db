"""Local files and folders that outlast a loss of power once a function here has returned. Knows no other storage."""

import errno
import os


def sync(path: str) -> None:
    """Wait until a local file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some filesystems (FUSE, CIFS) have no such call for a folder.
        if not os.path.isdir(path) or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def sync_all(folder: str) -> None:
    """The same for a folder and everything below it."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(os.path.join(root, name))
        sync(root)


def make_folders(folder: str) -> None:
    """The folder and those above it, whose names outlast a loss of power."""
    missing, above = [], folder
    while not os.path.isdir(above):
        missing.append(above)
        above = os.path.dirname(above)
    os.makedirs(folder, exist_ok=True)
    for made in missing:
        sync(os.path.dirname(made))


def exchange(path: str, new: str, old: str) -> None:
    """Rename `path`, if it is there, to `old`, and `new` to `path`; if the second fails, the first is undone."""
    if os.path.lexists(path):
        os.rename(path, old)
    try:
        os.rename(new, path)
    except OSError:
        if os.path.lexists(old):
            os.rename(old, path)
        raise
    sync(os.path.dirname(path))
