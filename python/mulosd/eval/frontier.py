"""The frontier of speed and quality, drawn from a benchmark report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .measures import MEASURES, Measure, Point
from .report import forwards
from .sweeps import KNOBS

SUFFIXES = (".png", ".svg", ".pdf")
# Okabe and Ito's palette: told apart in every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
# What `bench decode` measures.
DRAWN = [measure for measure in MEASURES if measure.key in ("accuracy", "kid", "nll")]
# That fit into the width of the figure at the legend's size.
LEGEND_CHARACTERS = 170


def frontier(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Indices of the points that no other beats in both, the cheapest first."""
    best: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -gains[i])):
        if not best or gains[i] > gains[best[-1]]:
            best.append(i)
    return best


def check_plot(path: Path) -> None:
    """ValueError for a file that no plot can be written to, by its name; ImportError without matplotlib."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--plot {path}: name a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError("--plot needs matplotlib: pip install 'mulosd[bench]'") from None


def series(report: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Rows by what they have in common: the decoder with its settings, but for its knob."""
    found: dict[str, list[dict[str, Any]]] = {}
    # What every row states through its calibration says nothing about a series, unless rows differ in it.
    usual = ("radius", "pool", "scale", "grid", "upsampler")
    shared = {key for key in usual if len({row["settings"].get(key) for row in report["rows"]} - {None}) <= 1}
    for row in report["rows"]:
        knob = KNOBS.get(row["decoder"])
        parts = row["spec"].split(":")
        hidden = shared if knob is None else shared | {knob.setting}
        name = " ".join([parts[0], *(p.replace("_", " ") for p in parts[1:] if p.partition("=")[0] not in hidden)])
        found.setdefault(name, []).append(row)
    return found


def plot_frontier(report: dict[str, Any], path: Path) -> None:
    """Draw quality against seconds and against forwards, a line a sweep, and the frontier of them all.

    Args:
        report: of `measure`.
        path: a .png, .svg or .pdf file.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: another kind of file, or a report without rows.
    """
    check_plot(path)
    if not report["rows"]:
        raise ValueError("the report has no rows, so there is nothing to plot")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measures = [m for m in DRAWN if any(m.of(row) for row in report["rows"])]
    figure, axes = pyplot.subplots(
        2, len(measures), figsize=(4.6 * len(measures) + 0.4, 8), squeeze=False, sharey="col", layout="constrained"
    )
    groups = series(report)
    for column, measure in enumerate(measures):
        for line, heading in enumerate(("seconds an image (median, p20-p80)", "forward passes an image")):
            axis = axes[line, column]
            panel(axis, groups, measure, by_time=line == 0)
            axis.set_xlabel(heading)
            axis.set_ylabel(f"{measure.title} ({measure.better} is better)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    # All columns are as wide as the longest label, and have to fit beside one another.
    columns = max(1, min(4, LEGEND_CHARACTERS // (max(map(len, labels)) + 8)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    figure.suptitle(
        f"{report['family']}, {report['prompts']} prompts, batch 1; {report['device']}\n"
        "95 % intervals; the grey line is the frontier, labels are the settings",
        fontsize=10,
    )
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def cost(row: dict[str, Any], by_time: bool) -> Point:
    if not by_time:
        return Point(*([forwards(row)] * 3))
    seconds = row["seconds_per_image"]
    return Point(seconds["median"], seconds["p20"], seconds["p80"])


def style(n: int) -> tuple[str, str]:
    """Colour and marker of the n-th series; every round of colours shifts the markers."""
    return COLOURS[n % len(COLOURS)], MARKERS[(n + n // len(COLOURS)) % len(MARKERS)]


def panel(axis: Any, groups: dict[str, list[dict[str, Any]]], measure: Measure, by_time: bool) -> None:
    """One measure against one cost."""
    costs: list[float] = []
    values: list[float] = []
    labels: list[tuple[str, list[dict[str, Any]], list[float], list[float]]] = []
    for n, (name, rows) in enumerate(groups.items()):
        known = [(row, cost(row, by_time), point) for row in rows if (point := measure.of(row)) is not None]
        if not known:
            continue
        x, y = [c.value for _, c, _ in known], [p.value for _, _, p in known]
        colour, marker = style(n)
        axis.errorbar(
            x, y,
            xerr=[[c.value - c.low for _, c, _ in known], [c.high - c.value for _, c, _ in known]],
            yerr=[[p.value - p.low for _, _, p in known], [p.high - p.value for _, _, p in known]],
            label=name, color=colour, marker=marker, markersize=6, linewidth=1, elinewidth=0.7, capsize=2, alpha=0.9,
        )  # fmt: skip
        labels.append((colour, [row for row, _, _ in known], x, y))
        costs += x
        values += y
    best = frontier(costs, values if measure.better == "higher" else [-v for v in values])
    axis.plot(
        [costs[i] for i in best], [values[i] for i in best],
        color="0.8", linewidth=5, marker="o", markersize=14, zorder=0,
    )  # fmt: skip
    if max(costs) > 4 * min(costs) > 0:
        log_scale(axis)
    for n, series_labels in enumerate(labels):
        annotate(axis, *series_labels, above=n % 2 == 0)
    axis.grid(alpha=0.25)


def log_scale(axis: Any) -> None:
    """Costs in logarithms, with plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def annotate(axis: Any, colour: str, rows: list[dict[str, Any]], x: list[float], y: list[float], above: bool) -> None:
    """Write the knob beside the points of a series; neighbours that would overlap share one label."""
    from matplotlib.patheffects import withStroke

    places = (axis.transData + axis.transAxes.inverted()).transform(list(zip(x, y, strict=True)))
    clumps: list[list[int]] = []
    for i, place in enumerate(places):
        if clumps and all(abs(place - places[clumps[-1][0]]) < (0.12, 0.06)):
            clumps[-1].append(i)
        else:
            clumps.append([i])
    for clump in clumps:
        knob = KNOBS.get(rows[clump[0]]["decoder"])
        values = [] if knob is None else [rows[i]["settings"].get(knob.setting) for i in clump]
        if knob is None or None in values:
            continue
        ends = dict.fromkeys(f"{value:.2g}" for value in (min(values), max(values)))
        axis.annotate(
            f"{knob.setting} {' to '.join(ends)}", (x[clump[-1]], y[clump[-1]]),
            xytext=(6, 6 if above else -12), textcoords="offset points", fontsize=7, color=colour,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
