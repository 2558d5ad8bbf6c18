"""How much memory a family takes, and how many requests fit."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .cache import KVCache
from .family import Family
from .models.emu3_vq import Emu3VQ
from .models.vq import VQ

# Copies of a picture's widest feature map that are alive at a time while the tokenizer decodes.
MAPS = 3


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a family takes in one type; an estimate, the allocator's slack is not in it.

    Attributes:
        weights: of all parts.
        kv: keys and values of one guided request by grid, both branches.
        logits: of one guided request whose whole target grid is verified at once.
        working: what decoding one picture to pixels and one verification take for a moment.
        request: keys, values and logits of one request of MuLo-SD at the largest scale, or of serial decoding.
    """

    weights: int
    kv: dict[int, int]
    logits: int
    working: int
    request: int

    def largest_batch(self, memory: int) -> int:
        """Requests that fit into so many bytes."""
        return max(0, (memory - self.weights - self.working) // self.request)


def plan_memory(family: Family, dtype: torch.dtype, *, collapse: bool = False) -> MemoryPlan:
    """The memory plan of a family; its tensors may be on the meta device.

    Args:
        family: loaded, with or without weights, quantised or not.
        dtype: of the AR models and the conditioner.
        collapse: keep the condition in one slot of the KV cache, for models that allow it.
    """
    size = dtype.itemsize
    weights = family.weight_bytes(dtype)
    kv = {}
    for grid in family.grids:
        model = family.model(grid)
        row = KVCache.bytes_per_row(model, grid, collapse=collapse and model.zero_prefix)
        kv[grid] = 2 * row // model.dtype.itemsize * size
    target = family.grids[-1]
    logits = 2 * target**2 * family.ar.config.vocab_size * 4
    channels = family.tokenizer.config.channels[0] if isinstance(family.tokenizer, VQ | Emu3VQ) else 32
    pixels = (target * family.patch) ** 2
    working = logits + MAPS * channels * pixels * 4
    drafter = target // family.scale if family.scale else None
    # A draft that stands before the image lies in the image's own cache.
    request = kv[target] + (0 if drafter is None else kv.get(drafter, 0) + logits)
    return MemoryPlan(weights, kv, logits, working, request)
