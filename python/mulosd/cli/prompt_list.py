"""Lists of prompts: text with one a line, CSV and JSONL with settings of each."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.paths import expanded
from ..files.texts import parse_json, read_text, text_of

COLUMNS = ("prompt", "seed", "decoder", "output")
STDIN = "-"


@dataclass(frozen=True)
class Asked:
    """A prompt, where it was written (for messages), and what its line settles; the rest is for options to settle.

    `output` is a file below the folder of --output.
    """

    prompt: str
    place: str
    seed: int | None = None
    decoder: str | None = None
    output: Path | None = None


def read_prompt_list(name: str) -> list[Asked]:
    """The prompts of a file, or of standard input ("-").

    The suffix tells how to read it: .csv and .tsv (with a line of column names), .jsonl and .ndjson (an object a line),
    anything else is text with a prompt a line. Blank lines are skipped. Standard input is text, or JSONL when its first
    line starts with "{".

    Raises:
        ValueError: no such file, no text, no prompt, or a line that cannot be; the message names file and line.
    """
    if name == STDIN:
        given = sys.stdin.buffer if hasattr(sys.stdin, "buffer") else io.BytesIO(sys.stdin.read().encode())
        text = text_of(given, "stdin")
        kind, label = ".jsonl" if text.lstrip().startswith("{") else ".txt", "stdin"
    else:
        path = expanded(name)
        if not path.is_file():
            what = "a directory" if path.is_dir() else "not there"
            raise ValueError(f"--prompts {name} is {what}; name a file with one prompt a line, CSV or JSONL")
        kind, label = path.suffix.lower(), name
        if kind in (".json", ".yaml", ".yml", ".toml", ".parquet", ".xlsx", ".ods"):
            raise ValueError(f"--prompts {name}: {kind[1:]} is not read; write text, CSV or JSONL (an object a line)")
        text = read_text(path)
    read = {".csv": table, ".tsv": table, ".jsonl": objects, ".ndjson": objects}.get(kind, lines)
    asked = list(read(text, label))
    if not asked:
        raise ValueError(f"{label} has no prompts; write one a line")
    return asked


def lines(text: str, label: str) -> Iterator[Asked]:
    # Not str.splitlines, which also cuts at signs that may stand within a prompt.
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if line.strip():
            yield Asked(line.strip(), f"{label} line {number}")


def table(text: str, label: str) -> Iterator[Asked]:
    head = next((line for line in text.splitlines() if line.strip()), "")
    # Spreadsheets write the sign that the language of the computer has.
    delimiter = max(",;\t", key=head.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    begun = 1
    try:
        for row in rows:
            place, begun = f"{label} line {begun}", rows.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            if names is None:
                names = [cell.strip().lower() for cell in row]
                check_columns(names, place)
            elif len(row) > len(names):
                raise ValueError(
                    f"{place} has {len(row)} cells for {len(names)} columns; quote a prompt that holds {delimiter!r}"
                )
            else:
                yield asked_of(dict(zip(names, (cell.strip() for cell in row), strict=False)), place)
    except csv.Error as error:
        raise ValueError(f"{label} line {rows.line_num}: {error}") from error


def objects(text: str, label: str) -> Iterator[Asked]:
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        place = f"{label} line {number}"
        if not line.strip():
            continue
        values = parse_json(line, label, number)
        if not isinstance(values, dict):
            raise ValueError(f'{place} is no object; write such as {{"prompt": "a cat", "seed": 7}}')
        check_columns(list(values), place)
        yield asked_of(values, place)


def check_columns(names: list[str], place: str) -> None:
    if "prompt" not in names:
        raise ValueError(
            f"{place} names no 'prompt' (but {', '.join(map(repr, names))}); possible: {', '.join(COLUMNS)}"
        )
    for name in names:
        if name not in COLUMNS:
            raise ValueError(f"{place} names {name!r}, which means nothing here; possible: {', '.join(COLUMNS)}")
        if names.count(name) > 1:
            raise ValueError(f"{place} names {name!r} twice")


def asked_of(values: dict[str, Any], place: str) -> Asked:
    """What the cells of a line say; empty ones say nothing."""

    def text(name: str) -> str | None:
        value = values.get(name)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{place}: {name} must be a text, got {value!r}")
        return value or None

    seed = values.get("seed")
    output = text("output")
    return Asked(
        text("prompt") or "",
        place,
        None if seed in (None, "") else seed_of(seed, f"{place}: seed"),
        text("decoder"),
        None if output is None else Path(output),
    )


def seed_of(value: object, what: str, random: Callable[[], int] | None = None) -> int:
    """A seed from a text or a number; "random" is what `random` draws, where that is possible."""
    if random is not None and isinstance(value, str) and value.strip().lower() == "random":
        return random()
    try:
        seed = int(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else -1
    except ValueError:
        seed = -1
    if not 0 <= seed < 2**63:
        possible = "a whole number of 0 or more, below 2**63" + (", or random" if random is not None else "")
        raise ValueError(f"{what} must be {possible}, got {value!r}")
    return seed
