"""Reports as tables on screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from .measures import known

# Settings that the name of a row spells out where it has them, in this order and form.
SHORT = {
    "scale": "r{}",
    "tau": "τ{:.1g}",
    "window": "w{}",
    "draft_window": "d{}",
    "draft_guesses": "g{}",
    "refine": "f{}",
    "verify_dtype": "{}",
    "lantern_k": "k{}",
    "delta": "δ{:.1g}",
}


# Values that are not worth a word, beside None.
SILENT = {"refine": 0}


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def labels(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The decoder of each row with the settings that tell it from others; a scale that all share is left out."""
    scales = {scale for row in rows if (scale := row["settings"].get("scale")) is not None}
    short = {key: form for key, form in SHORT.items() if key != "scale" or len(scales) > 1}
    return [
        " ".join(
            [
                r["decoder"],
                *(f.format(v) for k, f in short.items() if (v := r["settings"].get(k)) not in (None, SILENT.get(k))),
            ]
        )
        for r in rows
    ]


def forwards(row: dict[str, Any]) -> float:
    """Forward passes an image, all roles together."""
    return float(sum(row["forwards"].values()))


def bench_table(report: dict[str, Any], named: Sequence[tuple[str, dict[str, Any]]] | None = None) -> Table:
    """The rows of a report as one table, which fits 80 columns.

    Args:
        report: of `measure`.
        named: rows with the names that they are to have; None shows all rows of the report by their label.
    """
    runs = report["timing"]["runs"]
    table = Table(
        title=f"{report['family']}: {report['prompts']} prompts, medians of {runs} runs at batch 1",
        caption=f"{report['device']}. ×: speed-up; fwd: forwards; rej, res: rejected, resampled, %; objects right, %; "
        "τ: tau, w: window, d: draft window, f: refine, r: scale; "
        "objects with their 95 % interval, KID-Lite0 with its standard error",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    table.add_column("decoder")
    for heading in ("s/image", "p20-p80", "×", "fwd", "rej", "res", "NLL", "objects", "KID"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in zip(labels(report["rows"]), report["rows"], strict=True) if named is None else named:
        seconds, accuracy, kid = row["seconds_per_image"], row["accuracy"], row["kid"]
        objects = "-"
        if accuracy is not None and accuracy["value"] is not None:
            low, high = accuracy["ci95"]
            objects = f"{100 * accuracy['value']:.0f} ({100 * low:.0f}-{100 * high:.0f})"
        table.add_row(
            name,
            f"{seconds['median']:.3g}",
            f"{seconds['p20']:.2g}-{seconds['p80']:.2g}",
            f"{row['speedup']:.2f}" if "speedup" in row else "-",
            f"{forwards(row):.0f}",
            percent(row["rejection"]),
            percent(row["coverage"]),
            f"{row['nll']:.2f}",
            objects,
            "-" if kid is None else f"{kid['value']:.0f}±{kid['std']:.0f}",
        )
    return table


def evaluation_table(report: dict[str, Any]) -> Table:
    """The rows of an evaluation as a table."""
    shown = [measure for measure in known(report["rows"]) if measure.key != "relative_seam"]
    table = Table(
        title=f"{report['family']}: {len(report['prompts'])} prompts x {report['num_images']}",
        caption=f"{report['device']}. ×: speed-up; fwd: forwards; res: resampled, %; intervals are in the report",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    table.add_column("decoder", overflow="fold")
    for heading in ("s/image", "×", "fwd", "res", *(measure.short for measure in shown)):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report["rows"]:
        points = [(measure.of(row), measure.digits) for measure in shown]
        table.add_row(
            row["label"],
            f"{row['seconds_per_image']['mean']:.3g}",
            f"{row['speedup']['value']:.2f}",
            f"{forwards(row):.0f}",
            percent(row["coverage"]),
            *("-" if point is None else f"{point.value:.{digits}f}" for point, digits in points),
        )
    return table
