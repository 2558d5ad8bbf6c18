"""Locks that end with their process: `flock` of the system, which a kill releases too, so that none is ever stale."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .paths import expanded

# Some network file systems have no locks; work goes on without them there.
UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EINVAL}
# Between two looks at a lock that is waited for.
PAUSE = 0.02
# A change of one file takes far less.
PATIENCE = 60.0


def grab(descriptor: int) -> bool | None:
    """Lock an open file or folder at once: whether it worked; None where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return None
        raise
    return True


def same_file(descriptor: int, path: Path) -> bool:
    """Whether an open file is still what its path leads to."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def lock_file(path: Path, name: str = "") -> Path:
    """Where the lock of a folder (in it) or of a file (beside it) lies; `name` tells several locks of one from another.

    Symbolic links are followed: all names of a file have one lock.
    """
    target = expanded(path).resolve()
    suffix = f".{name}.lock" if name else ".lock"
    return target / suffix if target.is_dir() else target.with_name(f".{target.name[:100]}{suffix}")


@contextmanager
def locked(path: Path, doing: str, *, name: str = "", wait: bool = False) -> Iterator[None]:
    """Hold the lock of a file or folder, which ends with the block, or with the process however that ends.

    Args:
        path: the file, which need not exist, or the folder, which must.
        doing: what is done with it, for the message, such as "an evaluation into".
        name: of the lock, where a folder has several.
        wait: for a holder to end, up to PATIENCE seconds, instead of refusing at once.

    Raises:
        ValueError: another process holds it.
        OSError: the lock file cannot be made.
    """
    file = lock_file(path, name)
    until = time.monotonic() + (PATIENCE if wait else 0.0)
    descriptor = taken(file)
    while descriptor is None:
        if time.monotonic() >= until:
            raise ValueError(
                f"{doing} {path} is under way in another process{holder(file)}: wait until it has ended, or name "
                f"another place"
            )
        time.sleep(PAUSE)
        descriptor = taken(file)
    try:
        yield
    finally:
        # Only who holds the lock removes the file, so that nobody else's is removed.
        with contextlib.suppress(OSError):
            if same_file(descriptor, file):
                file.unlink()
        os.close(descriptor)


def taken(file: Path) -> int | None:
    """An open lock file that is locked; None where another process holds it."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            got = grab(descriptor)
            # Its last holder may have removed it between the two calls: then nobody else would see this lock.
            if got is not False and same_file(descriptor, file):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if got is False:
            return None


def holder(file: Path) -> str:
    """Who holds a lock, in words; nothing where that is not known."""
    with contextlib.suppress(OSError, ValueError), file.open("rb") as opened:
        return f" (process {int(opened.read(20))})"
    return ""
