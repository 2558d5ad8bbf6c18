"""A benchmark report as tables on screen."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table

WINDOWS = {"draft_window": "d", "window": "w", "lantern_k": "k"}


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def label(row: dict[str, Any]) -> str:
    """The decoder of a row with the windows, or LANTERN's neighbours, that tell it from others of its name."""
    settings = row["settings"]
    windows = [f"{short}{settings[key]}" for key, short in WINDOWS.items() if settings.get(key) is not None]
    return " ".join([row["decoder"], *windows])


def bench_table(report: dict[str, Any]) -> Group:
    """The rows of `bench_decode` as two tables, time and quality, which fit 80 columns each.

    `w2` behind a name is its window, `d2` its drafting window.
    """
    runs = report["timing"]["runs"]
    speed = Table(
        title=f"{report['family']}: {report['prompts']} prompts, medians of {runs} runs at batch 1",
        caption=report["device"],
        box=box.SIMPLE,
        padding=0,
    )
    quality = Table(title="quality of the same pictures", box=box.SIMPLE, padding=0)
    for table in (speed, quality):
        table.add_column("decoder", no_wrap=True)
        table.add_column("tau", justify="right", no_wrap=True)
    for heading in ("s/image (p20-p80)", "speed-up", "forwards"):
        speed.add_column(heading, justify="right")
    for heading in ("rejected", "resampled", "NLL", "objects (95 %)", "scenes", "KID-Lite0"):
        quality.add_column(heading, justify="right")
    for row in report["rows"]:
        seconds, accuracy, kid = row["seconds_per_image"], row["accuracy"], row["kid"]
        tau = row["settings"].get("tau")
        key = (label(row), "-" if tau is None else f"{tau:.2g}")
        objects = scenes = "-"
        if accuracy is not None:
            scenes = percent(accuracy["scene"]["value"])
            if accuracy["value"] is not None:
                low, high = accuracy["ci95"]
                objects = f"{percent(accuracy['value'])} ({100 * low:.0f}-{100 * high:.0f})"
        speed.add_row(
            *key,
            f"{seconds['median']:.3g} ({seconds['p20']:.3g}-{seconds['p80']:.3g})",
            f"{row['speedup']:.2f}x" if "speedup" in row else "-",
            ", ".join(f"{role} {count:.0f}" for role, count in row["forwards"].items())
            + (f" ({row['accepted']:.2f} tokens each)" if row.get("accepted") is not None else ""),
        )
        quality.add_row(
            *key,
            percent(row["rejection"]),
            percent(row["coverage"]),
            f"{row['nll']:.3f}",
            objects,
            scenes,
            "-" if kid is None else f"{kid['value']:.1f} ± {kid['std']:.1f}",
        )
    return Group(speed, quality)
