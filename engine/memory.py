"""How much memory a family takes, and how many requests fit."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .cache import KVCache, layout_of, prefix_slots
from .family import Family
from .graph_memory import decoding_bytes
from .models.emu3_vq import Emu3VQ
from .models.vq import VQ

# Copies of a picture's widest feature map that are alive at a time while the tokenizer decodes.
MAPS = 3
# Most requests at a time that graphs are planned for: `SchedulerConfig.max_running`, unless it is changed.
PLANNED = 64


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a family takes in one type; an estimate, the allocator's slack is not in it.

    Attributes:
        weights: of all parts.
        kv: keys and values of one guided request by grid, both branches.
        logits: of one guided request whose whole target grid is verified at once.
        working: what decoding one picture to pixels and one verification take for a moment.
        request: keys, values and logits of one request of MuLo-SD at the largest scale, or of serial decoding.
        steps: what the graphs of decoding hold on a GPU, for 1, 2, 4, ... guided requests and one way to sample.
    """

    weights: int
    kv: dict[int, int]
    logits: int
    working: int
    request: int
    steps: tuple[int, ...]

    def graphs(self, requests: int) -> int:
        """Bytes that the graphs of decoding so many requests hold on a GPU; more than were planned for run in turns."""
        return self.steps[min(len(self.steps), (requests - 1).bit_length() + 1) - 1] if requests > 0 else 0

    def largest_batch(self, memory: int, *, graphs: bool = False) -> int:
        """Requests that fit into so many bytes, with the graphs of decoding them where asked for."""
        left = memory - self.weights - self.working
        count = max(0, left // self.request)
        while graphs and count > 0 and count * self.request + self.graphs(count) > left:
            count -= 1
        return count


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
    own = drafter if drafter in kv else None
    request = kv[target] + (0 if drafter is None else kv.get(drafter, 0) + logits)
    caches = [(family.model(g), g) for g in ([target] if own is None else [target, own])]
    slots = [prefix_slots(m, collapse and m.zero_prefix) + layout_of(m, g).slots for m, g in caches]
    counts = [1 << i for i in range(PLANNED.bit_length())]
    pairs = list(zip(caches, slots, strict=True))
    steps = [sum(decoding_bytes(model, n, count, size) for (model, _), n in pairs) for count in counts]
    return MemoryPlan(weights, kv, logits, working, request, tuple(steps))
