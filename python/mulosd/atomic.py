"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes its name only once it is complete; on any failure nothing is left.

    A symbolic link stays one: the file that it leads to is replaced. A file that is replaced keeps its mode.

    Raises:
        OSError: names `path`, even where the system names no file (a full disk) or the partial one.
    """
    target = path.resolve() if path.is_symlink() else path
    # Cut, so that the partial file may be named wherever the file itself may be.
    partial = target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.part")
    try:
        with partial.open("xb") as file:
            yield file
        if target.exists():
            partial.chmod(stat.S_IMODE(target.stat().st_mode))
        partial.replace(target)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(partial)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_json(path: Path, values: Any) -> None:
    """Write `values` as indented JSON, whole or not at all; ValueError for what JSON has no form for, such as NaN."""
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic(path) as file:
        file.write(text.encode())
