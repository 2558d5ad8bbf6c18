"""Lists of prompts: text with one a line, CSV, JSONL and Parquet with settings of each."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..engine.paths import expanded
from ..files.texts import parse_json, read_text, text_of

COLUMNS = ("prompt", "seed", "decoder", "output")
# A batch names its images by it.
ID = "id"
STDIN = "-"
POSSIBLE = "with one prompt a line, CSV, JSONL or Parquet"


@dataclass(frozen=True)
class Asked:
    """A prompt, where it was written (for messages), and what its line settles; the rest is for options to settle.

    `output` is a file below the folder of --output, `id` what a batch calls the image.
    """

    prompt: str
    place: str
    seed: int | None = None
    decoder: str | None = None
    output: Path | None = None
    id: str | None = None


@dataclass(frozen=True)
class Reading:
    """How a list is read.

    Args:
        label: its name in messages.
        columns: what its lines may name.
        wrong: told of the place of a line that cannot be, and why; None raises instead.
    """

    label: str
    columns: tuple[str, ...] = COLUMNS
    wrong: Callable[[str, ValueError], None] | None = None

    def row(self, place: str, values: Callable[[], dict[str, Any]]) -> Iterator[Asked]:
        """What a line asks for; nothing where it cannot be and that was told."""
        try:
            asked = asked_of(values(), place)
        except ValueError as error:
            if self.wrong is None:
                raise
            self.wrong(place, error)
        else:
            yield asked


def read_prompt_list(
    name: str,
    option: str = "--prompts ",
    *,
    columns: tuple[str, ...] = COLUMNS,
    wrong: Callable[[str, ValueError], None] | None = None,
) -> list[Asked]:
    """The prompts of a file, or of standard input ("-").

    The suffix tells how to read it: .csv and .tsv (with a line of column names), .jsonl and .ndjson (an object a line),
    .parquet (needs pyarrow), anything else is text with a prompt a line. Blank lines are skipped. Standard input is
    text, or JSONL when its first line starts with "{".

    Args:
        name: of the file.
        option: what stands before the name on the command line, for messages.
        columns, wrong: see `Reading`.

    Raises:
        ImportError: it is Parquet, and pyarrow is not installed.
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
            raise ValueError(f"{option}{name} is {what}; name a file {POSSIBLE}")
        kind, label = path.suffix.lower(), name
        if kind in (".json", ".yaml", ".yml", ".toml", ".xlsx", ".ods"):
            raise ValueError(
                f"{option}{name}: {kind[1:]} is not read; write text, CSV, JSONL (an object a line) or Parquet"
            )
        text = "" if kind == ".parquet" else read_text(path)
    failed = False

    def noted(place: str, error: ValueError) -> None:
        nonlocal failed
        failed = True
        if wrong is not None:
            wrong(place, error)

    how = Reading(label, columns, None if wrong is None else noted)
    if kind == ".parquet":
        asked = list(parquet(path, how))
    else:
        read = {".csv": table, ".tsv": table, ".jsonl": objects, ".ndjson": objects}.get(kind, lines)
        asked = list(read(text, how))
    if not asked and not failed:
        raise ValueError(f"{label} has no prompts; write one a line")
    return asked


def lines(text: str, how: Reading) -> Iterator[Asked]:
    # Not str.splitlines, which also cuts at signs that may stand within a prompt.
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if line.strip():
            yield Asked(line.strip(), f"{how.label} line {number}")


def parquet(path: Path, how: Reading) -> Iterator[Asked]:
    from ..files.parquet import parquet_rows

    names, rows = parquet_rows(path)
    check_columns(names, how.label, how.columns)
    for number, values in enumerate(rows, 1):
        yield from how.row(f"{how.label} row {number}", partial(dict, values))


def table(text: str, how: Reading) -> Iterator[Asked]:
    head = next((line for line in text.splitlines() if line.strip()), "")
    # Spreadsheets write the sign that the language of the computer has.
    delimiter = max(",;\t", key=head.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    begun = 1
    try:
        for row in rows:
            place, begun = f"{how.label} line {begun}", rows.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            if names is None:
                names = [cell.strip().lower() for cell in row]
                check_columns(names, place, how.columns)
            else:
                yield from how.row(place, partial(cells, names, row, place, delimiter))
    except csv.Error as error:
        raise ValueError(f"{how.label} line {rows.line_num}: {error}") from error


def cells(names: list[str], row: list[str], place: str, delimiter: str) -> dict[str, Any]:
    if len(row) > len(names):
        raise ValueError(
            f"{place} has {len(row)} cells for {len(names)} columns; quote a prompt that holds {delimiter!r}"
        )
    return dict(zip(names, (cell.strip() for cell in row), strict=False))


def objects(text: str, how: Reading) -> Iterator[Asked]:
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if line.strip():
            yield from how.row(f"{how.label} line {number}", partial(fields, line, number, how))


def fields(line: str, number: int, how: Reading) -> dict[str, Any]:
    place = f"{how.label} line {number}"
    values = parse_json(line, how.label, number)
    if not isinstance(values, dict):
        raise ValueError(f'{place} is no object; write such as {{"prompt": "a cat", "seed": 7}}')
    check_columns(list(values), place, how.columns)
    return values


def check_columns(names: list[str], place: str, possible: tuple[str, ...]) -> None:
    if "prompt" not in names:
        raise ValueError(
            f"{place} names no 'prompt' (but {', '.join(map(repr, names))}); possible: {', '.join(possible)}"
        )
    for name in names:
        if name not in possible:
            raise ValueError(f"{place} names {name!r}, which means nothing here; possible: {', '.join(possible)}")
        if names.count(name) > 1:
            raise ValueError(f"{place} names {name!r} twice")


def asked_of(values: dict[str, Any], place: str) -> Asked:
    """What the cells of a line say; empty ones say nothing."""

    def text(name: str) -> str | None:
        value = values.get(name)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{place}: {name} must be a text, got {value!r}")
        return value or None

    seed, name = values.get("seed"), values.get(ID)
    output = text("output")
    return Asked(
        text("prompt") or "",
        place,
        None if seed in (None, "") else seed_of(seed, f"{place}: seed"),
        text("decoder"),
        None if output is None else Path(output),
        None if name in (None, "") else id_of(name, place),
    )


def id_of(value: object, place: str) -> str:
    """An id as the name of a file, from a text or a number."""
    found = str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", found) is None:
        raise ValueError(f"{place}: id must be 1 to 100 letters, digits, '.', '_' or '-', got {value!r}")
    return found


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
