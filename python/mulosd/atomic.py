"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes its name only once it is complete; on any failure nothing is left."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with partial.open("xb") as file:
            yield file
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, values: Any) -> None:
    """Write `values` as indented JSON, whole or not at all; ValueError for what JSON has no form for, such as NaN."""
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic(path) as file:
        file.write(text.encode())
