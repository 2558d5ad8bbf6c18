"""Files and folders that appear whole or not at all, and what killed writers leave, which the next one removes."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from .lock import grab, same_file
from .paths import expanded

# Names of unfinished files and folders: no other program's look so.
PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}\.part")
CONTROLS = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
# A file that someone has open: replacing it, where it is a file on disk, would leave them with the old one.
OPEN_FILE = re.compile(r"/dev/(stdout|stderr|fd/\d+)|/proc/(self|\d+)/fd/\d+")


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes its name only once it is complete and on disk; on any failure nothing is left.

    A symbolic link stays one: the file that it leads to is replaced. A file that is replaced keeps its mode. A device
    or a pipe (/dev/null, /dev/stdout) is written to when the block has ended well.

    Raises:
        OSError: names `path`, even where the system names no file (a full disk) or the partial one.
    """
    path = expanded(path)
    if is_stream(path):
        held = io.BytesIO()
        yield held
        with told(path), path.open("ab") as stream:
            stream.write(held.getvalue())
        return
    target = path.resolve() if path.is_symlink() else path
    clean(target.parent.resolve())
    file, partial = new_partial(target)
    with told(path, partial), file:  # closing a file whose buffer does not fit raises once more
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            # Before it is closed, which ends the lock that tells others that it is being written.
            take_name(partial, target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def take_name(made: Path, target: Path) -> None:
    """Give a complete file its name; a file that it replaces passes on its mode."""
    if target.exists():
        made.chmod(stat.S_IMODE(target.stat().st_mode))
    made.replace(target)


def is_stream(path: Path) -> bool:
    """Whether a path is something that bytes are written to rather than a file that can be replaced."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    if OPEN_FILE.fullmatch(str(path.absolute())):
        return True
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


@contextmanager
def told(path: Path, partial: Path | None = None) -> Iterator[None]:
    """Errors of the system with the name of the file that was to be written."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename in (None, str(partial)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def partial_name(target: Path) -> Path:
    # Cut, so that the partial file may be named wherever the file itself may be.
    return target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.part")


def new_partial(target: Path) -> tuple[BinaryIO, Path]:
    """A new unfinished file beside its target, open and locked."""
    while True:
        partial = partial_name(target)
        with told(target, partial):
            file = partial.open("xb")
        with contextlib.suppress(OSError):  # no locks here: then nobody removes it either
            fcntl.flock(file, fcntl.LOCK_EX)
        # One who cleans up may have been quicker than the lock.
        if same_file(file.fileno(), partial):
            return file, partial
        file.close()


@contextmanager
def partial_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside `target` for what is unfinished; what the block leaves of it is removed."""
    clean(target.parent.resolve())
    while True:
        folder = partial_name(target)
        with told(target, folder):
            folder.mkdir(0o700)
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if same_file(descriptor, folder):
                break
            os.close(descriptor)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def remove_abandoned(folder: Path) -> list[Path]:
    """Remove the unfinished files and folders of writers that are dead, and return their paths."""
    removed = []
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if PARTIAL.fullmatch(entry.name) and not entry.is_symlink() and remove_if_dead(Path(entry.path)):
                removed.append(Path(entry.path))
    return removed


def remove_if_dead(partial: Path) -> bool:
    try:
        descriptor = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        if grab(descriptor) is not True or not same_file(descriptor, partial):
            return False
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink()
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


@cache
def clean(folder: Path) -> None:
    """`remove_abandoned`, once a folder and process: to look through thousands of files for each of them takes long."""
    remove_abandoned(folder)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file of lines, which is on disk when this returns; on a full disk none of it is.

    What an earlier writer left of a line stays one of its own.

    Raises:
        OSError: names `path`.
    """
    with told(path), path.open("ab+", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        data = line.encode(errors="backslashreplace") + b"\n"
        if before:
            file.seek(before - 1)
            if file.read(1) != b"\n":
                data = b"\n" + data
        try:
            written = file.write(data)
            while written < len(data):  # a disk that is nearly full takes a part without an error
                written += file.write(data[written:])
            os.fsync(file.fileno())
        except BaseException:
            os.ftruncate(file.fileno(), before)
            raise


def write_json(path: Path, values: Any) -> None:
    """Write `values` as indented JSON, whole or not at all; ValueError for what JSON has no form for, such as NaN."""
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    # JSON itself writes out only the controls of ASCII; a terminal that shows the file knows others.
    text = CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    with atomic(path) as file:
        # Paths of other encodings have characters that UTF-8 has no form for.
        file.write(text.encode(errors="backslashreplace"))
