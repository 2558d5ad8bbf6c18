"""Plots of rows: the frontier of speed and quality, and the charts of an evaluation's page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..engine.atomic import atomic
from .decode import KNOBS
from .measures import MEASURES, Measure, seconds
from .rows import Figure, Row, rows_of

SUFFIXES = (".png", ".svg", ".pdf")
# Okabe and Ito's palette: told apart in every kind of colour vision, and but for the last on black as on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
# What `bench decode` measures.
DRAWN = [measure for measure in MEASURES if measure.key in ("accuracy", "scenes", "kid", "nll")]
# That fit into the width of the figure at the legend's size.
LEGEND_CHARACTERS = 170
# Stands for the colour of the page's text until the SVG is made.
TEXT = "#010203"


def pyplot(option: str) -> Any:
    """matplotlib's, drawing to files alone; ImportError says what needs it."""
    try:
        import matplotlib
    except ImportError:
        raise ImportError(f"{option} needs matplotlib: pip install 'mulosd[bench]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def check_plot(path: Path) -> None:
    """ValueError for a file that no plot can be written to, by its name; ImportError without matplotlib."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--plot {path}: name a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file")
    pyplot("--plot")


def frontier(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Indices of the points that no other beats in both, the cheapest first."""
    best: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -gains[i])):
        if not best or gains[i] > gains[best[-1]]:
            best.append(i)
    return best


def series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by what they have in common: the decoder with its settings, but for its knob."""
    found: dict[str, list[Row]] = {}
    # What every row states through its calibration says nothing about a series, unless rows differ in it.
    usual = ("radius", "pool", "scale", "grid", "upsampler")
    shared = {key for key in usual if len({row.settings.get(key) for row in rows} - {None}) <= 1}
    for row in rows:
        knob = KNOBS.get(row.what["decoder"])
        parts = row.what["spec"].split(":")
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
    rows = rows_of(report)
    if not rows:
        raise ValueError("the report has no rows, so there is nothing to plot")
    plt = pyplot("--plot")
    measures = [m for m in DRAWN if any(m.of(row) for row in rows)]
    figure, axes = plt.subplots(
        2, len(measures), figsize=(4.6 * len(measures) + 0.4, 8), squeeze=False, sharey="col", layout="constrained"
    )
    groups = series(rows)
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
    with atomic(path) as file:
        figure.savefig(file, dpi=150, format=path.suffix[1:].lower() or "png")
    plt.close(figure)


def cost(row: Row, by_time: bool) -> Figure:
    found = row.figure("seconds_per_image") if by_time else row.total("forwards")
    if found is None:
        raise ValueError(f"the row of {row.what['spec']} does not say what an image cost")
    return found if by_time else Figure(found.value, found.value, found.value)


def style(n: int) -> tuple[str, str]:
    """Colour and marker of the n-th series; every round of colours shifts the markers."""
    return COLOURS[n % len(COLOURS)], MARKERS[(n + n // len(COLOURS)) % len(MARKERS)]


def panel(axis: Any, groups: dict[str, list[Row]], measure: Measure, by_time: bool) -> None:
    """One measure against one cost."""
    costs: list[float] = []
    values: list[float] = []
    labels: list[tuple[str, list[Row], list[float], list[float]]] = []
    for n, (name, rows) in enumerate(groups.items()):
        known = [(row, cost(row, by_time), point) for row in rows if (point := measure.of(row)) is not None]
        if not known:
            continue
        x, y = [c.value for _, c, _ in known], [p.value for _, _, p in known]
        colour, marker = style(n)
        axis.errorbar(
            x, y,
            xerr=arms([c for _, c, _ in known]), yerr=arms([p for _, _, p in known]),
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


def annotate(axis: Any, colour: str, rows: list[Row], x: list[float], y: list[float], above: bool) -> None:
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
        knob = KNOBS.get(rows[clump[0]].what["decoder"])
        if knob is None or any(rows[i].settings.get(knob.setting) is None for i in clump):
            continue
        values = [rows[i].settings[knob.setting] for i in clump]
        ends = dict.fromkeys(f"{value:.2g}" for value in (min(values), max(values)))
        axis.annotate(
            f"{knob.setting} {' to '.join(ends)}", (x[clump[-1]], y[clump[-1]]),
            xytext=(6, 6 if above else -12), textcoords="offset points", fontsize=7, color=colour,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip


def colour(number: int) -> str:
    """The colour of a decoder by its place."""
    return COLOURS[number % (len(COLOURS) - 1)]


def chart(measure: Measure, rows: Sequence[Row], lines: dict[str, float]) -> str:
    """A measure of each decoder with its interval, and below it against the seconds of an image.

    Args:
        measure: what is drawn.
        rows: of the report.
        lines: further values to compare with, by name.

    Returns:
        An <svg> element without fixed size, text as text.
    """
    plt = pyplot("the report")
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": measure.key,
        "font.size": 9,
        **{f"{what}.color": TEXT for what in ("text", "xtick", "ytick")},
        "axes.labelcolor": TEXT,
        "axes.edgecolor": TEXT,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with plt.rc_context(style):
        height = 0.9 + 0.26 * len(rows)
        figure, (upper, lower) = plt.subplots(
            2, 1, figsize=(4.4, height + 2.6), height_ratios=[height, 2.6], layout="constrained"
        )
        for number, row in enumerate(rows):
            point = measure.of(row)
            if point is None:
                continue
            look = {"color": colour(number), "marker": MARKERS[number % len(MARKERS)], "markersize": 6, "capsize": 2}
            across, cost = arms([point]), seconds(row)
            upper.errorbar(point.value, number, xerr=across, **look)
            lower.errorbar(cost.value, point.value, xerr=arms([cost]), yerr=across, elinewidth=0.8, **look)
            lower.annotate(
                str(number + 1), (cost.value, point.value), xytext=(6, 5), textcoords="offset points",
                color=TEXT, fontweight="bold",
            )  # fmt: skip
        for name, value in lines.items():
            upper.axvline(value, color=TEXT, linestyle=":", linewidth=1)
            lower.axhline(value, color=TEXT, linestyle=":", linewidth=1)
            upper.annotate(
                name, (value, 1), xycoords=("data", "axes fraction"), xytext=(2, 0), textcoords="offset points",
                rotation=0, fontsize=7, color=TEXT, va="bottom", ha="center",
            )  # fmt: skip
        upper.set_yticks(range(len(rows)), [f"{n} {short(row.what['label'])}" for n, row in enumerate(rows, start=1)])
        upper.set_ylim(len(rows) - 0.5, -0.5)
        upper.set_xlabel(f"{measure.title} ({measure.better} is better)")
        lower.set_xlabel("seconds an image")
        lower.set_ylabel(measure.title)
        for axis in (upper, lower):
            axis.set_facecolor("none")
            axis.grid(alpha=0.25)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(figure)
    return themed(buffer.getvalue(), f"{measure.title} of {len(rows)} decoders")


def arms(points: Sequence[Figure]) -> list[list[float]]:
    """Lengths below and above; a bootstrap interval need not hold the value itself."""
    return [[max(0.0, p.value - p.low) for p in points], [max(0.0, p.high - p.value) for p in points]]


def short(label: str, most: int = 28) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"


def themed(svg: str, title: str) -> str:
    """An SVG file as an element of a page: no prologue, no metadata, text in the colour of the page."""
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    head, rest = body.split(">", 1)
    head = re.sub(r'\s(width|height|version|xmlns(:xlink)?)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{title}">{rest}'.replace(TEXT, "currentColor")
