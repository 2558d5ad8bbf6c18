"""The measures of an evaluation: how a row states each, which way is better, and what it means in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..measure.statistics import Z95


class Point(NamedTuple):
    """A value with the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Measure:
    """A measure of quality.

    Attributes:
        key: its name among the differences of a row.
        title: for tables and plots.
        short: for the table on the screen.
        of: a row's value with its interval; None where it is missing.
        better: "higher", "lower" or "near 1".
        meaning: a sentence or two for whoever reads the report.
        digits: behind the point.
        factor: what differences of the JSON are multiplied by for the table.
    """

    key: str
    title: str
    short: str
    of: Callable[[dict[str, Any]], Point | None]
    better: str
    meaning: str
    digits: int = 2
    factor: float = 1.0


def accuracy(row: dict[str, Any]) -> Point | None:
    found = row["accuracy"]
    if found is None or found["value"] is None:
        return None
    return Point(100 * found["value"], *(100 * end for end in found["ci95"]))


def kid(row: dict[str, Any]) -> Point | None:
    found = row["kid"]
    if found is None:
        return None
    half = Z95 * found["std"]
    return Point(found["value"], found["value"] - half, found["value"] + half)


def nll(row: dict[str, Any]) -> Point | None:
    return Point(row["nll"], *row.get("nll_ci95", (row["nll"], row["nll"])))


def estimate(*keys: str) -> Callable[[dict[str, Any]], Point | None]:
    """Reads {"value", "ci95"} behind keys of a row; None where one of them is missing."""

    def of(row: dict[str, Any]) -> Point | None:
        found: Any = row
        for key in keys:
            found = found.get(key)
            if found is None:
                return None
        return Point(found["value"], *found["ci95"])

    return of


def relative_seam(row: dict[str, Any]) -> Point | None:
    found = row["seam"]
    return None if found is None else Point(found["relative"], *found["relative_ci95"])


MEASURES = (
    Measure(
        "accuracy",
        "Right, %",
        "right",
        accuracy,
        "higher",
        "Objects (or classes) that an independent network finds, of those that the prompts ask for. The network was "
        "trained on real pictures alone. It knows a closed list and says nothing about beauty.",
        digits=1,
        factor=100,
    ),
    Measure(
        "kid",
        "KID-Lite0",
        "KID",
        kid,
        "lower",
        "Kernel distance x 1000 between the pictures and real ones on pooled EfficientNet-Lite0 features; unbiased, "
        "and about 0 for real pictures. Not the usual KID, which takes Inception's features.",
        digits=1,
    ),
    Measure(
        "frechet",
        "Frechet-Lite0",
        "Frechet",
        estimate("frechet"),
        "lower",
        "Frechet distance between Gaussians fitted to the same features. Not FID, and biased upwards where pictures "
        "are few: compare it only within this report, where every decoder drew the same number.",
    ),
    Measure(
        "nll",
        "NLL, nats a token",
        "NLL",
        nll,
        "lower",
        "How unlikely the target model finds the tokens of the finished picture. Plain pictures are likely too: "
        "read it beside the others.",
    ),
    Measure(
        "within",
        "Diversity within prompts",
        "within",
        estimate("diversity", "within"),
        "higher",
        "Mean cosine distance between the features of pictures of the same prompt. A decoder that loses it draws the "
        "same picture again.",
        digits=3,
    ),
    Measure(
        "overall",
        "Diversity overall",
        "div.",
        estimate("diversity", "overall"),
        "higher",
        "The same over all pictures; the line of the references says how diverse real pictures are.",
        digits=3,
    ),
    Measure(
        "seam",
        "Seam energy",
        "seam",
        estimate("seam"),
        "near 1",
        "Mean jump of colour across the borders of resampled regions, divided by that across the token boundaries "
        "beside them. 1 is no seam, but outlines of objects that follow a border raise it too. Only decoders that "
        "verify a draft have one.",
    ),
    Measure(
        "relative_seam",
        "Seam, relative",
        "seam r.",
        relative_seam,
        "near 1",
        "The same, each jump first divided by the jumps within its two tokens, so that detail does not count as a "
        "seam.",
    ),
)

COSTS = (
    (
        "Seconds",
        "Wall-clock seconds an image, mean with its interval; the machine is named above. The speed-up is to the first "
        "decoder.",
    ),
    ("Forwards", "Forward passes an image, of drafter and target together."),
    ("Resampled", "Share of tokens that the target drew anew after verifying the draft."),
)


def known(rows: list[dict[str, Any]]) -> list[Measure]:
    """The measures that any row has."""
    return [measure for measure in MEASURES if any(measure.of(row) is not None for row in rows)]
