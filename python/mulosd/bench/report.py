"""Rows as a table on the screen, as JSON, and as a picture."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .rows import Row


def as_json(rows: list[Row]) -> dict[str, Any]:
    """What `--json` writes."""
    return {"rows": [asdict(row) for row in rows]}


COLUMNS = {"by": 21, "median µs": 10, "p20-p80": 17, "GB/s": 7, "TFLOP/s": 7, "floor": 5, "error": 7}


def kernel_table(rows: list[Row]) -> Group:
    """A block a case: who was timed, the fastest in bold, or failed; `reasons` tells of the others."""
    cases: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        cases.setdefault((row.op, row.shape, row.dtype), []).append(row)
    blocks: list[RenderableType] = []
    for case, own in cases.items():
        table = Table(box=None, pad_edge=False, show_header=not blocks)
        for name, width in COLUMNS.items():
            table.add_column(name, justify="left" if name == "by" else "right", width=width, no_wrap=True)
        fastest = min((row.median_us for row in own if row.median_us is not None), default=None)
        for row in own:
            if row.status == "failed":
                table.add_row(f"[bold red]{row.backend}[/]", "[bold red]failed[/]")
            elif row.median_us is not None:
                style = "bold" if row.median_us == fastest else "none"
                table.add_row(
                    f"[{style}]{row.backend}[/]",
                    f"[{style}]{row.median_us:,.1f}[/]",
                    f"{row.p20_us:,.1f}-{row.p80_us:,.1f}",
                    f"{row.gb_per_s:,.1f}",
                    f"{row.tflop_per_s:,.3f}",
                    "" if row.floor_share is None else f"{100 * row.floor_share:.0f} %",
                    f"{row.max_error:.1e}",
                )
        blocks += [Text("  ".join(case), style="cyan"), table]
    return Group(*blocks)


def reasons(rows: list[Row]) -> list[str]:
    """Why rows were skipped or failed, each reason once."""
    found: dict[str, None] = {}
    for row in rows:
        if row.status == "skipped":
            found[f"{row.op} by {row.backend}: {row.note}"] = None
        elif row.status == "failed":
            found[f"FAILED {row.op} {row.shape} by {row.backend}: {row.note}"] = None
    return list(found)


# Of bars: ours by backend, all peers alike.
COLOURS = {"cuda": "#d95f02", "triton": "#e6ab02", "torch": "#7570b3"}
PEER = "#b3b3b3"


def plot(rows: list[Row], path: Path) -> None:
    """Bars of the medians, one panel an op, to a PNG, SVG or PDF file.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: no row was timed.
    """
    try:
        import matplotlib
    except ImportError:
        raise ImportError("--plot needs matplotlib; pip install 'mulosd[bench]'") from None
    matplotlib.use("Agg")
    from matplotlib import patches, pyplot, ticker

    timed = [row for row in rows if row.median_us is not None]
    if not timed:
        raise ValueError("nothing was timed, so there is nothing to plot")
    ops = list(dict.fromkeys(row.op for row in timed))
    counts = [sum(row.op == op for row in timed) for op in ops]
    figure, axes = pyplot.subplots(
        len(ops), 1, figsize=(9, 1.2 * len(ops) + 0.24 * len(timed)), squeeze=False, height_ratios=counts
    )
    for axis, op in zip(axes[:, 0], ops, strict=True):
        mine = [row for row in timed if row.op == op]
        names = [f"{row.shape}  {row.backend}" for row in mine]
        colours = [COLOURS.get(row.backend, PEER) for row in mine]
        medians = [row.median_us or 0.0 for row in mine]
        bars = axis.barh(range(len(mine)), medians, color=colours)
        axis.bar_label(
            bars, [f"{median:,.0f}" if median >= 100 else f"{median:.3g}" for median in medians], padding=2, fontsize=7
        )
        axis.set_yticks(range(len(mine)), names, fontsize=7)
        axis.invert_yaxis()
        # Whole decades, so that the shortest bar has a length and the longest has room for its label.
        axis.set_xscale("log")
        axis.set_xlim(
            10.0 ** math.floor(math.log10(min(medians)) - 0.5), 10.0 ** math.ceil(math.log10(max(medians)) + 0.2)
        )
        axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        axis.tick_params(axis="x", labelsize=7)
        axis.set_title(f"{op}, median µs, {mine[0].device}", fontsize=9, loc="left")
    kinds = {**COLOURS, "peer": PEER}
    shown = {row.backend if row.backend in COLOURS else "peer" for row in timed}
    handles = [patches.Patch(color=colour, label=kind) for kind, colour in kinds.items() if kind in shown]
    axes[0, 0].legend(handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=4, fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
