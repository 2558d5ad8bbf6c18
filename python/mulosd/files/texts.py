"""The one reader of text files: what editors of Windows, macOS and Linux write.

Text is UTF-8, with or without a byte order mark, or UTF-16. Other encodings are refused, not guessed: nearly every file
decodes as Windows-1252, so that a guess would turn Polish or Japanese captions into nonsense without a word.
"""

from __future__ import annotations

import codecs
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

from ..engine.paths import expanded

LIMIT = 256 * 2**20
DEPTH = 64
# The longest first: the mark of UTF-32 (LE) starts with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path, limit: int = LIMIT) -> str:
    """The text of a file without a byte order mark, its lines ended by "\\n".

    Raises:
        ValueError: there is no such file, it has more than `limit` bytes, or it is no UTF-8 or UTF-16 text; the message
            names the file, and the byte and line of what cannot be read.
    """
    path = expanded(path)
    try:
        with path.open("rb") as file:
            return text_of(file, str(path), limit)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error


def text_of(file: BinaryIO, name: str, limit: int = LIMIT) -> str:
    """The text of an open file, such as standard input; `name` stands for it in errors, which are as of `read_text`."""
    data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{name} has more than {limit:,} bytes, the limit for a text file; split it")
    encoding = encoding_of(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{name} is no {encoding[:6].upper().rstrip('-')} text: byte {error.start} (line {line}) is "
            f"0x{data[error.start]:02x}; save it as UTF-8, from Windows-1252 for example with: "
            f"iconv -f WINDOWS-1252 -t UTF-8"
        ) from error
    if "\0" in text:
        at = text.index("\0")
        raise ValueError(f"{name} is no text: there is a NUL character in line {text.count(chr(10), 0, at) + 1}")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    # Files that were joined have a mark at the start of each.
    return text.replace("\n\ufeff", "\n").removeprefix("\ufeff")


def encoding_of(data: bytes) -> str:
    """The encoding by its mark, or UTF-16 where every other byte of the start is mostly NUL, or UTF-8."""
    for mark, encoding in MARKS:
        if data.startswith(mark):
            return encoding
    start = data[: 4096 if len(data) > 4096 else len(data) // 2 * 2]
    even, odd = start[::2].count(0), start[1::2].count(0)
    for encoding, full, empty in (("utf-16-le", even, odd), ("utf-16-be", odd, even)):
        if start and empty > 0.4 * len(start) // 2 and full == 0:
            return encoding
    return "utf-8"


def read_lines(path: Path, limit: int = LIMIT) -> list[str]:
    """The lines of a text file as an editor numbers them, without their ends; errors as of `read_text`."""
    return split_lines(read_text(path, limit))


def split_lines(text: str) -> list[str]:
    """Lines that end with "\\n" alone: `str.splitlines` also cuts at form feeds and at separators of Unicode."""
    return text.removesuffix("\n").split("\n") if text else []


def read_json(path: Path, limit: int = LIMIT, kind: type = object) -> Any:
    """The value of a JSON file.

    Args:
        path: the file.
        limit: its largest size in bytes.
        kind: what it must hold at its top level, such as `dict`.

    Raises:
        ValueError: as for `read_text`; it is no JSON (with line and column), names a key twice, holds NaN or infinity,
            is nested more than DEPTH deep, or holds something else than `kind`.
    """
    value = parse_json(read_text(path, limit), str(path))
    if not isinstance(value, kind):
        raise ValueError(f"{path} must hold a {kind.__name__} at its top level, but holds a {type(value).__name__}")
    return value


def parse_json(text: str, name: str, line: int | None = None) -> Any:
    """The value of JSON of the file `name`, which is that line of it or all of it; errors as of `read_json`."""
    where = name if line is None else f"{name}, line {line}"
    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse, parse_float=finite)
    except json.JSONDecodeError as error:
        where = f"{name}, line {(line or 1) + error.lineno - 1}, column {error.colno}"
        raise ValueError(f"{where}: this is no JSON: {error.msg[0].lower()}{error.msg[1:]}") from error
    except RecursionError as error:
        raise ValueError(f"{where}: the JSON is nested more than {DEPTH} deep") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    level = [value]
    for _ in range(DEPTH + 1):
        inner = [node.values() if isinstance(node, dict) else node for node in level if isinstance(node, (dict, list))]
        level = [child for children in inner for child in children]
    if level:
        raise ValueError(f"{where}: the JSON is nested more than {DEPTH} deep")
    return value


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; ValueError where a key is named twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON and no number to go on with")


def finite(text: str) -> float:
    """A number of JSON; ValueError where it is too large for a float."""
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value
