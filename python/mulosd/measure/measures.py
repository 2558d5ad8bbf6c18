"""The measures of quality: where a row states each, which way is better, and what it means in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .rows import Figure, Row


@dataclass(frozen=True)
class Measure:
    """A measure of quality.

    Attributes:
        key: its name among the differences of a row.
        title: for tables and plots.
        short: for the table on the screen.
        path: its figure in a row.
        better: "higher", "lower" or "near 1".
        meaning: a sentence or two for whoever reads the report.
        digits: behind the point.
        factor: what the figure is multiplied by to be shown.
    """

    key: str
    title: str
    short: str
    path: str
    better: str
    meaning: str
    digits: int = 2
    factor: float = 1.0

    def of(self, row: Row) -> Figure | None:
        """A row's value as it is shown; None where it is missing."""
        found = row.figure(self.path)
        return None if found is None else found.times(self.factor)


MEASURES = (
    Measure(
        "accuracy",
        "Right, %",
        "right",
        "accuracy",
        "higher",
        "Objects (or classes) that an independent network finds, of those that the prompts ask for. The network was "
        "trained on real images alone. It knows a closed list and says nothing about beauty.",
        digits=1,
        factor=100,
    ),
    Measure(
        "scenes",
        "Scenes right, %",
        "scenes",
        "scenes",
        "higher",
        "Images with everything as asked: each object, none beside them, where they stand to each other, and the "
        "background. One wrong object makes a scene wrong, so it is stricter than the share of objects.",
        digits=1,
        factor=100,
    ),
    Measure(
        "kid",
        "KID-Lite0",
        "KID",
        "kid",
        "lower",
        "Kernel distance x 1000 between the images and real ones on pooled EfficientNet-Lite0 features; unbiased, "
        "and about 0 for real images. Not the usual KID, which takes Inception's features.",
        digits=1,
    ),
    Measure(
        "frechet",
        "Frechet-Lite0",
        "Frechet",
        "frechet",
        "lower",
        "Frechet distance between Gaussians fitted to the same features. Not FID, and biased upwards where images "
        "are few: compare it only within this report, where every decoder drew the same number.",
    ),
    Measure(
        "nll",
        "NLL, nats a token",
        "NLL",
        "nll",
        "lower",
        "How unlikely the target model finds the tokens of the finished image. Plain images are likely too: "
        "read it beside the others.",
    ),
    Measure(
        "within",
        "Diversity within prompts",
        "within",
        "diversity.within",
        "higher",
        "Mean cosine distance between the features of images of the same prompt. A decoder that loses it draws the "
        "same image again.",
        digits=3,
    ),
    Measure(
        "overall",
        "Diversity overall",
        "div.",
        "diversity.overall",
        "higher",
        "The same over all images; the line of the references says how diverse real images are.",
        digits=3,
    ),
    Measure(
        "seam",
        "Seam energy",
        "seam",
        "seam",
        "near 1",
        "Mean jump of colour across the borders of resampled regions, divided by that across the token boundaries "
        "beside them. 1 is no seam, but outlines of objects that follow a border raise it too. Only decoders that "
        "verify a draft have one.",
    ),
    Measure(
        "relative_seam",
        "Seam, relative",
        "seam r.",
        "seam.relative",
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
    ("Resampled", "Share of tokens that the target drew again after verifying the draft."),
)


def seconds(row: Row) -> Figure:
    """Mean seconds an image with its 95 % interval."""
    found = row.values["seconds_per_image"]
    low, high = found["ci95"]
    return Figure(found["mean"], low, high, "s")


def known(rows: Sequence[Row]) -> list[Measure]:
    """The measures that any row has."""
    return [measure for measure in MEASURES if any(measure.of(row) is not None for row in rows)]
