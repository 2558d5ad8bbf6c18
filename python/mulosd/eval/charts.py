"""Charts of an evaluation as SVG that takes the colours of the page around it."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from .frontier import MARKERS
from .measures import Measure, Point

# Okabe and Ito's palette without its black and yellow: seen on white and on black, in every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Stands for the colour of the page's text until the SVG is made.
TEXT = "#010203"


def colour(number: int) -> str:
    """The colour of a decoder by its place."""
    return COLOURS[number % len(COLOURS)]


def check_charts() -> None:
    """ImportError without matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError("the report needs matplotlib: pip install 'mulosd[bench]'") from None


def chart(measure: Measure, rows: Sequence[dict[str, Any]], lines: dict[str, float]) -> str:
    """A measure of each decoder with its interval, and below it against the seconds of an image.

    Args:
        measure: what is drawn.
        rows: of the report.
        lines: further values to compare with, by name.

    Returns:
        An <svg> element without fixed size, text as text.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

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
    with matplotlib.rc_context(style):
        height = 0.9 + 0.26 * len(rows)
        figure, (upper, lower) = pyplot.subplots(
            2, 1, figsize=(4.4, height + 2.6), height_ratios=[height, 2.6], layout="constrained"
        )
        for number, row in enumerate(rows):
            point = measure.of(row)
            if point is None:
                continue
            seconds = row["seconds_per_image"]
            look = {"color": colour(number), "marker": MARKERS[number % len(MARKERS)], "markersize": 6, "capsize": 2}
            across = arms(point)
            upper.errorbar(point.value, number, xerr=across, **look)
            cost = Point(seconds["mean"], *seconds["ci95"])
            lower.errorbar(cost.value, point.value, xerr=arms(cost), yerr=across, elinewidth=0.8, **look)
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
        upper.set_yticks(range(len(rows)), [f"{n} {short(row['label'])}" for n, row in enumerate(rows, start=1)])
        upper.set_ylim(len(rows) - 0.5, -0.5)
        upper.set_xlabel(f"{measure.title} ({measure.better} is better)")
        lower.set_xlabel("seconds an image")
        lower.set_ylabel(measure.title)
        for axis in (upper, lower):
            axis.set_facecolor("none")
            axis.grid(alpha=0.25)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    return themed(buffer.getvalue(), f"{measure.title} of {len(rows)} decoders")


def arms(point: Point) -> list[list[float]]:
    """Lengths below and above; a bootstrap interval need not hold the value itself."""
    return [[max(0.0, point.value - point.low)], [max(0.0, point.high - point.value)]]


def short(label: str, most: int = 28) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"


def themed(svg: str, title: str) -> str:
    """An SVG file as an element of a page: no prologue, no metadata, text in the colour of the page."""
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    head, rest = body.split(">", 1)
    head = re.sub(r'\s(width|height|version|xmlns(:xlink)?)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{title}">{rest}'.replace(TEXT, "currentColor")
