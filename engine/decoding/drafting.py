"""The draft of MuLo-SD: rows of the small grid, serially, with a ZipAR window, or by Jacobi guesses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..cache import Lane
from ..family_config import Calibration
from ..request import Request, Steps
from ..sampling import Logits, Noise
from .jacobi import Coupled
from .serial import draw_raster
from .zipar import draw_steps, window_steps


@dataclass(frozen=True)
class Drafting:
    """How a draft is drawn.

    Args:
        window: of ZipAR; None, or at least the width, is serial.
        guesses: of coupled Jacobi decoding, the tokens guessed in one forward: the tokens of the serial draft in fewer
            forwards. None or 0 is serial.
    """

    window: int | None = None
    guesses: int | None = None

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"draft_window must be at least 1 token, or None for serial, got {self.window}")
        if self.guesses is not None and self.guesses < 0:
            raise ValueError(f"draft_guesses must be at least 1 token, or 0 for serial, got {self.guesses}")
        if self.window is not None and self.guesses:
            raise ValueError("draft_window and draft_guesses are two ways to draft: give one of them")

    def settled(self, calibration: Calibration | None) -> Drafting:
        """This way of drafting, or that of a family's calibration where none is given."""
        if self.window is not None or self.guesses is not None or calibration is None:
            return self
        return Drafting(calibration.draft_window, calibration.draft_guesses)


def draft_rows(
    request: Request,
    lane: Lane,
    tokens: Tensor,
    rows: Sequence[int],
    logits: Logits,
    noise: Noise,
    how: Drafting,
    side: int | None = None,
) -> Steps:
    """Draw rows of `tokens` [N] in place; the cache holds everything before them.

    Args:
        rows: consecutive row numbers.
        logits: [1, V] of the first position.
        how: in which forwards.
        side: of the grid, where it is another than the lane's: one that stands before the image.
    """
    width = lane.grid if side is None else side
    start, stop = rows[0] * width, (rows[-1] + 1) * width
    window = how.window
    if how.guesses:
        yield from Coupled(request, lane, tokens, noise, "draft").run(start, stop, logits, how.guesses)
        return
    if window is None or window >= width:
        yield from draw_raster(request, lane, tokens, start, stop, logits, noise, "draft")
        return
    steps = window_steps(width, len(rows), window, rows[0])
    yield from draw_steps(request, lane, tokens, steps, noise, "draft", {start: logits})
