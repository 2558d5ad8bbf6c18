"""A lane: one request on one grid. The CFG pair is one unit, two adjacent rows of the KV cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .cache import KVCache


class Lane:
    """Rows of a KV cache, and what every token of the request is given beside its own embedding.

    Args:
        cache: where the keys and values lie.
        features: condition features [n, cond_len, cond_dim]: the conditional branch and, with guidance, the
            unconditional one.
        first_row: rows that are taken already; None takes them.
    """

    def __init__(self, cache: KVCache, features: Tensor, first_row: int | None = None) -> None:
        self.cache, self.branches = cache, features.shape[0]
        self.first_row = cache.take(self.branches) if first_row is None else first_row
        self.features = features
        self.everywhere = cache.model.embed_global(features)
        # None: every slot up to a query holds a token. Otherwise bool [slots], slots that may be seen.
        self.valid: Tensor | None = None

    @property
    def grid(self) -> int:
        return self.cache.grid

    @property
    def size(self) -> int:
        """Number of image tokens."""
        return self.grid * self.grid

    @property
    def cond_len(self) -> int:
        return self.cache.model.config.cond_len

    @property
    def guided(self) -> bool:
        return self.branches == 2

    def hide(self, positions: Sequence[int]) -> None:
        """Make raster positions invisible until they are shown again."""
        self._show(positions, False)

    def show(self, positions: Sequence[int]) -> None:
        """Make raster positions visible."""
        if self.valid is not None:
            self._show(positions, True)

    def _show(self, positions: Sequence[int], value: bool) -> None:
        if not positions:
            return
        if self.valid is None:
            self.valid = torch.ones(self.cache.slots, dtype=torch.bool, device=self.features.device)
        self.valid[torch.tensor(positions, device=self.valid.device) + self.cond_len] = value

    def move(self, sources: Sequence[int], start: int) -> None:
        """Copy the keys and values in the slots of raster positions `sources` to those from `start` on."""
        if list(sources) == list(range(start, start + len(sources))):
            return
        rows = slice(self.first_row, self.first_row + self.branches)
        taken = torch.tensor(sources, device=self.features.device) + self.cond_len
        begin = start + self.cond_len
        for layer in (*self.cache.k, *self.cache.v):
            layer[rows, begin : begin + len(sources)] = layer[rows, taken]

    def branch(self, index: int) -> Lane:
        """One branch of this lane as a lane of its own: 0 is the conditional one. It shares the rows."""
        return Lane(self.cache, self.features[index : index + 1], self.first_row + index)

    def keep_null(self, logits: Tensor) -> None:
        """Remember the prefix of the unconditional branch, which has just been fed, for all requests."""
        row, n = self.first_row + 1, self.cond_len
        layers = [(k[row, :n].clone(), v[row, :n].clone()) for k, v in zip(self.cache.k, self.cache.v, strict=True)]
        self.cache.null = (layers, logits)

    def take_null(self) -> Tensor:
        """Put the remembered prefix into the unconditional row; returns its logits [1, V]."""
        if self.cache.null is None:
            raise RuntimeError("the unconditional prefix has not been computed")
        layers, logits = self.cache.null
        row, n = self.first_row + 1, self.cond_len
        for layer, (k, v) in enumerate(layers):
            self.cache.k[layer][row, :n] = k
            self.cache.v[layer][row, :n] = v
        return logits

    def close(self) -> None:
        """Give the rows back."""
        self.cache.release(self.first_row, self.branches)
