"""A benchmark report as a table on screen and as a JSON file."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def bench_table(report: dict[str, Any]) -> Table:
    """A table of the rows of `bench_decode`."""
    runs = report["timing"]["runs"]
    table = Table(
        title=f"{report['family']}: {report['prompts']} prompts, medians of {runs} runs at batch 1",
        caption=report["device"],
    )
    for heading in ("decoder", "tau"):
        table.add_column(heading)
    for heading in (
        "s/image (p20-p80)", "speed-up", "forwards", "rejected", "resampled", "NLL", "objects right (95 %)",
        "scenes right", "KID-Lite0",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for row in report["rows"]:
        seconds, accuracy, kid = row["seconds_per_image"], row["accuracy"], row["kid"]
        tau = row["settings"].get("tau")
        objects = scenes = "-"
        if accuracy is not None:
            scenes = percent(accuracy["scene"]["value"])
            if accuracy["value"] is not None:
                low, high = accuracy["ci95"]
                objects = f"{percent(accuracy['value'])} ({100 * low:.0f}-{100 * high:.0f})"
        table.add_row(
            row["decoder"],
            "-" if tau is None else f"{tau:.3g}",
            f"{seconds['median']:.3g} ({seconds['p20']:.3g}-{seconds['p80']:.3g})",
            f"{row['speedup']:.2f}x" if "speedup" in row else "-",
            ", ".join(f"{role} {count:.0f}" for role, count in row["forwards"].items()),
            percent(row["rejection"]),
            percent(row["coverage"]),
            f"{row['nll']:.3f}",
            objects,
            scenes,
            "-" if kid is None else f"{kid['value']:.1f} ± {kid['std']:.1f}",
        )
    return table
