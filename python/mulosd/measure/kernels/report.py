"""Rows of kernels for JSON, as tables on the screen, and as bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...engine.atomic import atomic
from ..ceilings import Ceilings
from ..plots import check_plot, pyplot
from ..rows import Row
from ..table import Column, figure, table

if TYPE_CHECKING:
    from rich.table import Table

# Of bars: ours by backend, all peers alike.
BARS = {"cuda": "#D55E00", "triton": "#E69F00", "torch": "#0072B2"}
PEER = "#B3B3B3"
FIGURES = (
    figure("median µs", "median_us", "{value:,.1f}"),
    Column("p20-p80", lambda row: f"{row.values['p20_us']:,.1f}-{row.values['p80_us']:,.1f}"),
    figure("GB/s", "gb_per_s", "{value:,.1f}"),
    figure("TFLOP/s", "tflop_per_s", "{value:,.3f}"),
    figure("floor", "floor_share", "{value:.0f} %", 100),
    figure("error", "max_error", "{value:.1e}"),
)


def as_report(rows: Sequence[Row], ceilings: Ceilings | None = None) -> dict[str, Any]:
    """What `--json` writes, with the ceilings of the CPU; `rows.read_json` reads it."""
    held = {} if ceilings is None else {"ceilings": ceilings.to_dict()}
    return {**(asdict(rows[0].machine) if rows else {}), **held, "rows": [row.to_dict() for row in rows]}


def case_of(row: Row) -> tuple[str, str, str]:
    return row.what["op"], row.what["shape"], row.what["dtype"]


def timed(rows: Sequence[Row]) -> list[Row]:
    """Those that have a time."""
    return [row for row in rows if row.what["status"] == "ok"]


def kernel_tables(rows: Sequence[Row]) -> list[Table]:
    """A table a case of who was timed, each with its time over the fastest's; `reasons` tells of the others."""
    tables = []
    for case, own in ((case, timed(list(group))) for case, group in groupby(rows, case_of)):
        if not own:
            continue
        fastest = min(row.values["median_us"] for row in own)
        columns = [
            Column("by", lambda row: row.what["backend"], left=True),
            *FIGURES,
            figure("× best", "median_us", "{value:.2f}", 1 / fastest),
        ]
        tables.append(table(own, columns, "  ".join(case)))
    return tables


def reasons(rows: Sequence[Row]) -> list[str]:
    """Why backends and peers were skipped, each reason once an op, and what failed."""
    found: dict[str, None] = {}
    for what in (row.what for row in rows):
        if what["status"] == "skipped":
            found[f"{what['op']} by {what['backend']}: {what['note']}"] = None
        elif what["status"] == "failed":
            found[f"FAILED {what['op']} {what['shape']} by {what['backend']}: {what['note']}"] = None
    return list(found)


def plot_kernels(rows: Sequence[Row], path: Path) -> None:
    """Bars of the medians, one panel an op.

    Args:
        rows: of `bench_kernels`.
        path: a .png, .svg or .pdf file.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: another kind of file, or no row was timed.
    """
    check_plot(path)
    panels: dict[str, list[Row]] = {}
    for row in timed(rows):
        panels.setdefault(row.what["op"], []).append(row)
    if not panels:
        raise ValueError("nothing was timed, so there is nothing to plot")
    plt = pyplot("--plot")
    from matplotlib import patches, ticker

    counts = [len(own) for own in panels.values()]
    size = (9, 1.2 * len(panels) + 0.24 * sum(counts))
    plot, axes = plt.subplots(len(panels), 1, figsize=size, squeeze=False, height_ratios=counts)
    for axis, (op, own) in zip(axes[:, 0], panels.items(), strict=True):
        medians = [row.values["median_us"] for row in own]
        bars = axis.barh(range(len(own)), medians, color=[BARS.get(row.what["backend"], PEER) for row in own])
        texts = [f"{median:,.0f}" if median >= 100 else f"{median:.3g}" for median in medians]
        axis.bar_label(bars, texts, padding=2, fontsize=7)
        axis.set_yticks(range(len(own)), [f"{row.what['shape']}  {row.what['backend']}" for row in own], fontsize=7)
        axis.invert_yaxis()
        # Whole decades, so that the shortest bar has a length and the longest has room for its label.
        ends = math.floor(math.log10(min(medians)) - 0.5), math.ceil(math.log10(max(medians)) + 0.2)
        axis.set_xscale("log")
        axis.set_xlim(*(10.0**end for end in ends))
        axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        axis.tick_params(axis="x", labelsize=7)
        axis.set_title(f"{op}, median µs, {own[0].machine.device}", fontsize=9, loc="left")
    shown = {row.what["backend"] if row.what["backend"] in BARS else "peer" for row in timed(rows)}
    handles = [patches.Patch(color=c, label=kind) for kind, c in {**BARS, "peer": PEER}.items() if kind in shown]
    axes[0, 0].legend(handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=4, fontsize=7, frameon=False)
    plot.tight_layout()
    with atomic(path) as file:
        plot.savefig(file, dpi=150, format=path.suffix[1:].lower() or "png")
    plt.close(plot)
