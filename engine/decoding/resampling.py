"""Which positions a rejection map has drawn anew, and in which order."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ...kernels.expand_islands import expand_islands
from .adaptive import spread
from .lockstep import steps_of

if TYPE_CHECKING:
    from .mulo import MuloSD

REJECTIONS = ("local", "naive", "raster")


class Resampling(NamedTuple):
    """Positions by step, counted from the first of the map; bool [H, W] of all of them; and the number of islands."""

    steps: list[list[int]]
    expanded: Tensor
    islands: int


def plan_resampling(decoder: MuloSD, rejected: Tensor, entropies: Tensor | None = None) -> Resampling:
    """What `decoder` resamples where `rejected` holds: its kind of rejection, its radius, its window.

    Args:
        decoder: the settings, resolved.
        rejected: bool [H, W].
        entropies: float32 [H, W] in nats; needed where the radius follows them.
    """
    window = decoder.window or None
    radius = 0 if decoder.rejection == "naive" else decoder.radius or 0
    if decoder.rejection == "raster":
        rejected = (rejected.flatten().long().cumsum(dim=0) > 0).view_as(rejected)
        radius = 0
    elif decoder.rejection == "local" and decoder.entropy_radius:
        if entropies is None:
            raise ValueError("a radius that follows the entropy needs the entropies")
        rejected = spread(rejected, entropies, radius, decoder.entropy_radius)
        radius = 0
    found = expand_islands(rejected[None], radius, window)
    # The one read of the device in a round; what follows is planned on the host.
    order, labels = torch.stack((found.order[0], found.labels[0])).cpu()
    steps, expanded = steps_of(order), found.expanded[0]
    if window is not None and steps:
        # When repairing everything from the first rejection on takes no more forwards, it is also better.
        behind = (torch.arange(order.numel()) >= min(steps[0])).view_as(order)
        whole = steps_of(expand_islands(behind[None], 0, window).order[0])
        if len(whole) <= len(steps):
            steps, expanded = whole, behind.to(expanded.device)
    return Resampling(steps, expanded, int(labels.max()))
