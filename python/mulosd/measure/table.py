"""Rows as one table, on the screen or as Markdown: a list of columns says what it shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .rows import Figure, Row

if TYPE_CHECKING:
    from rich.table import Table

# Settings that the name of a row spells out where it has them, in this order and form.
SHORT = {
    "scale": "r{}",
    "tau": "τ{:.1g}",
    "window": "w{}",
    "draft_window": "d{}",
    "draft_guesses": "g{}",
    "closeness": "c{:g}",
    "verify_dtype": "{}",
    "dtype": "{} engine",
    "quantization": "{} weights",
    "lantern_k": "k{}",
    "delta": "δ{:.1g}",
}


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        heading: above it.
        cell: what a row has there; None is "-".
        left: text rather than a number, which may be folded.
    """

    heading: str
    cell: Callable[[Row], str | None]
    left: bool = False


def figure(
    heading: str,
    key: str,
    form: str = "{value:.3g}",
    factor: float = 1.0,
    of: Callable[[Row, str], Figure | None] = Row.figure,
) -> Column:
    """A column of a figure.

    Args:
        heading: above it.
        key: of the figure.
        form: its text, of `value`, `low` and `high`.
        factor: to multiply by, 100 for per cent.
        of: `Row.figure` or `Row.total`.
    """

    def cell(row: Row) -> str | None:
        found = of(row, key)
        if found is None:
            return None
        shown = found.times(factor)
        return form.format(value=shown.value, low=shown.low, high=shown.high)

    return Column(heading, cell)


def total(heading: str, key: str, form: str = "{value:.0f}") -> Column:
    """A column of a figure that is stated by its parts."""
    return figure(heading, key, form, of=Row.total)


def named(names: Sequence[str], rows: Sequence[Row], heading: str = "decoder") -> Column:
    """A column of names, one a row in their order."""
    by_row = {id(row): name for row, name in zip(rows, names, strict=True)}
    return Column(heading, lambda row: by_row[id(row)], left=True)


def labels(rows: Sequence[Row]) -> list[str]:
    """The decoder of each row with the settings that tell it from others; a scale that all share is left out."""
    scales = {scale for row in rows if (scale := row.settings.get("scale")) is not None}
    short = {key: form for key, form in SHORT.items() if key != "scale" or len(scales) > 1}

    def label(row: Row) -> str:
        given = [form.format(v) for key, form in short.items() if (v := row.settings.get(key)) is not None]
        return " ".join([row.what["decoder"], *given])

    return [label(row) for row in rows]


def cells(rows: Sequence[Row], columns: Sequence[Column]) -> list[list[str]]:
    return [["-" if (text := column.cell(row)) is None else text for column in columns] for row in rows]


def table(rows: Sequence[Row], columns: Sequence[Column], title: str = "", caption: str = "", gap: int = 0) -> Table:
    """Rows for the screen.

    Args:
        rows: one a line.
        columns: from left to right.
        title, caption: above and below it.
        gap: spaces between columns beyond the one that there always is.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    made = Table(
        title=escape(title) or None,
        caption=escape(caption) or None,
        box=box.SIMPLE_HEAD,
        padding=(0, gap, 0, 0),
        pad_edge=False,
    )
    for column in columns:
        if column.left:
            made.add_column(column.heading, overflow="fold")
        else:
            made.add_column(column.heading, justify="right", no_wrap=True)
    for line in cells(rows, columns):
        made.add_row(*map(escape, line))
    return made


def markdown(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """The same as a Markdown table."""
    lines = [[column.heading for column in columns], ["---" if c.left else "---:" for c in columns]]
    return "\n".join(f"| {' | '.join(line)} |" for line in [*lines, *cells(rows, columns)]) + "\n"
