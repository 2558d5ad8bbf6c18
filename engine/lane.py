"""A lane: one request on one grid. The CFG pair is one unit, two adjacent rows of the KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from .cache import KVCache
from .collapse import run_prefix
from .models.ar_model import ARModel

# Unconditional prefixes kept: under caption masks there is one for each length of caption.
KEPT_NULLS = 16


class Lane:
    """Rows of a KV cache, and what every token of the request is given beside its own embedding.

    Args:
        cache: where the keys and values lie.
        features: condition features [n, cond_len, cond_dim]: the conditional branch and, with guidance, the
            unconditional one.
        first_row: rows that are taken already; None takes them.
        mask: bool [cond_len] on the CPU, prefix slots that other slots may see; None is all.
    """

    def __init__(
        self, cache: KVCache, features: Tensor, first_row: int | None = None, mask: Tensor | None = None
    ) -> None:
        self.cache, self.branches = cache, features.shape[0]
        self.first_row = cache.take(self.branches) if first_row is None else first_row
        self.features = features
        self.everywhere = cache.model.embed_global(features, cache.grid)
        # None: every slot up to a query holds a token. Otherwise bool [slots], slots that may be seen.
        self.valid: Tensor | None = None
        self.mask = mask
        if mask is not None and not cache.collapse:
            self.valid = torch.ones(cache.slots, dtype=torch.bool, device=features.device)
            self.valid[: self.cond_len] = mask.to(features.device)
        if cache.collapse:
            # Slots that the one prefix slot stands for, beside itself.
            seen = cache.model.config.cond_len if mask is None else int(mask.sum())
            self.extra = torch.tensor(seen - 1.0, device=features.device)

    @property
    def grid(self) -> int:
        return self.cache.grid

    @property
    def size(self) -> int:
        """Number of image tokens."""
        return self.grid * self.grid

    @property
    def cond_len(self) -> int:
        return self.cache.cond_len

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
        return Lane(self.cache, self.features[index : index + 1], self.first_row + index, self.mask)

    @property
    def null_key(self) -> bytes:
        """What the unconditional prefix depends on: which of its slots may be seen."""
        return b"" if self.mask is None else bytes(self.mask.tolist())

    def write_collapsed(self) -> Tensor:
        """Run the prefix of this lane's one branch into the first slot; returns its logits [1, V]."""
        means, logits = run_prefix(cast(ARModel, self.cache.model), self.features, self.grid, self.mask)
        for k, v, mean in zip(self.cache.k, self.cache.v, means, strict=True):
            k[self.first_row, 0], v[self.first_row, 0] = 0, mean[0]
        return logits

    def keep_null(self, logits: Tensor) -> None:
        """Remember the prefix of the unconditional branch, which has just been fed, for all requests."""
        row, n = self.first_row + 1, self.cond_len
        layers = [(k[row, :n].clone(), v[row, :n].clone()) for k, v in zip(self.cache.k, self.cache.v, strict=True)]
        kept = self.cache.null
        while len(kept) >= KEPT_NULLS:
            del kept[next(iter(kept))]
        kept[self.null_key] = (layers, logits)

    def take_null(self) -> Tensor:
        """Put the remembered prefix into the unconditional row; returns its logits [1, V]."""
        if self.null_key not in self.cache.null:
            raise RuntimeError("the unconditional prefix has not been computed")
        layers, logits = self.cache.null[self.null_key]
        row, n = self.first_row + 1, self.cond_len
        for layer, (k, v) in enumerate(layers):
            self.cache.k[layer][row, :n] = k
            self.cache.v[layer][row, :n] = v
        return logits

    def close(self) -> None:
        """Give the rows back."""
        self.cache.release(self.first_row, self.branches)
