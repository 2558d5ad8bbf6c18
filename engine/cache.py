"""The KV cache of one model on one grid: keys and values by row and slot, rows lent to requests.

Slot = condition length + raster position, always: a rejected token is overwritten in place, nothing is paged or moved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .models.eagle import Model

if TYPE_CHECKING:
    from .static_step import StaticStep


class KVCache:
    """Rows of keys and values [rows, slots, H, D], one pair of tensors a layer.

    Args:
        model: the AR transformer, or the drafter that continues its features.
        grid: side length in tokens.
        rows: how many to begin with; the cache doubles when they run out.
        collapse: hold the prefix in one slot (see `collapse`).
    """

    def __init__(self, model: Model, grid: int, rows: int = 2, *, collapse: bool = False) -> None:
        self.model, self.grid, self.collapse = model, grid, collapse
        self.cond_len = prefix_slots(model, collapse)
        self.slots = self.cond_len + grid * grid
        # What every token of a position is given; the weights do not change any more.
        position = model.position_embedding(grid)
        self.position = None if position is None else position.detach()
        rotary = model.rotary(grid)
        self.rotary = None if rotary is None else rotary[model.config.cond_len - self.cond_len :]
        self.k: list[Tensor] = []
        self.v: list[Tensor] = []
        # Keys and values of the unconditional prefix by layer, and the logits behind it, by visible prefix slots.
        self.null: dict[bytes, tuple[list[tuple[Tensor, Tensor]], Tensor]] = {}
        self.used = [False] * max(1, rows)
        self._views: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        # Steps of fixed shapes by (tokens a row, keys, masked, logits); they hold the addresses of this cache.
        self.steps: dict[tuple[int, int, bool, bool], StaticStep] = {}
        self._pool: Any = None
        self._allocate()

    @staticmethod
    def bytes_per_row(model: Model, grid: int, *, collapse: bool = False) -> int:
        """Bytes of one row, all layers: keys and values of every slot."""
        c = model.config
        element = model.output.weight.element_size()
        return 2 * c.n_layers * (prefix_slots(model, collapse) + grid * grid) * c.n_heads * c.head_dim * element

    def _allocate(self) -> None:
        c, weight = self.model.config, self.model.output.weight
        shape = (len(self.used), self.slots, c.n_heads, c.head_dim)
        for layers in (self.k, self.v):
            old = list(layers)
            # Zeros, not empty memory: a slot that is masked out is still read.
            layers[:] = [torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in range(c.n_layers)]
            for new, before in zip(layers, old, strict=False):
                new[: len(before)] = before
        self._views.clear()
        self.steps.clear()

    @property
    def device(self) -> torch.device:
        """Where the keys and values lie."""
        return self.k[0].device

    def graph_pool(self) -> Any:
        """The memory pool that the CUDA graphs of this cache share: they never run at the same time."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        return self._pool

    def rows(self, first: int, n: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [n, slots, H, D] of adjacent rows, one pair a layer."""
        key = (first, n)
        if key not in self._views:
            self._views[key] = [
                (k[first : first + n], v[first : first + n]) for k, v in zip(self.k, self.v, strict=True)
            ]
        return self._views[key]

    def take(self, n: int) -> int:
        """Lend `n` adjacent rows, zeroed; returns the first."""
        run = 0
        for row, used in enumerate(self.used):
            run = 0 if used else run + 1
            if run == n:
                first = row + 1 - n
                break
        else:
            first = len(self.used) - run
            self.used += [False] * max(len(self.used), n)
            self._allocate()
        self.used[first : first + n] = [True] * n
        for layer in (*self.k, *self.v):
            layer[first : first + n].zero_()
        return first

    def release(self, first: int, n: int) -> None:
        """Take rows back."""
        self.used[first : first + n] = [False] * n


def prefix_slots(model: Model, collapse: bool) -> int:
    """Slots that the condition takes; ValueError when a prefix cannot be collapsed."""
    if collapse and not model.zero_prefix:
        raise ValueError(
            f"the prefix of a {type(model).__name__} cannot be collapsed: that takes a model whose prefix keys "
            f"are zero, such as LlamaGen; leave collapse_prefix out"
        )
    return 1 if collapse else model.config.cond_len
