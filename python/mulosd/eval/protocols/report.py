"""A protocol's report as a table on screen."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from ..report import forwards, percent


def protocol_table(report: dict[str, Any]) -> Table:
    """A row a decoder: what it cost, its scores where there are any, and where the pictures are."""
    names = list(dict.fromkeys(name for row in report["rows"] for name in row["scores"] or ()))
    table = Table(
        title=f"{report['family']}: {report['protocol']}, {report['items']} prompts x {report['pictures']}",
        caption=f"{report['device']}. fwd: forwards; res: resampled, %",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    table.add_column("decoder", overflow="fold")
    for heading in ("s/image", "fwd", "res", *names):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("pictures", overflow="fold")
    for row in report["rows"]:
        scores = row["scores"] or {}
        table.add_row(
            row["label"],
            f"{row['seconds_per_image']['mean']:.3g}",
            f"{forwards(row):.0f}",
            percent(row["coverage"]),
            *(f"{scores[name]:.2f}" if name in scores else "-" for name in names),
            row["folder"],
        )
    return table
