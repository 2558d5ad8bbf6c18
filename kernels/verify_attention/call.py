"""The arguments of one call of `verify_attention`, and what every backend derives from them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LOG2E = 1.4426950408889634


class Call(NamedTuple):
    """The arguments of the reference, in its order; for their meaning see `verify_attention`."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    slots: Tensor
    valid: Tensor | None
    kv_len: int
    start: int | None = None
    scale: float | None = None
    block: Tensor | None = None
    counts: Tensor | None = None
    return_lse: bool = False
    splits: int | None = None
    cache_rows: Tensor | None = None

    @property
    def rows(self) -> int:
        """Queries of one key head, Q * H / Hkv."""
        return self.q.shape[1] * self.q.shape[2] // self.k_cache.shape[2]

    @property
    def factor(self) -> float:
        """Of scores in base 2: `exp(scale * x) == exp2(factor * x)`."""
        return (self.q.shape[-1] ** -0.5 if self.scale is None else self.scale) * LOG2E

    def for_kernel(self) -> Call:
        """The same call with layouts that a kernel can read, and no committed slot behind the last query."""
        block, counts, cache_rows = self.block, self.counts, self.cache_rows
        return self._replace(
            block=block.contiguous() if block is not None and block.stride(-1) != 1 else block,
            counts=None if counts is None else counts.contiguous(),
            cache_rows=None if cache_rows is None else cache_rows.contiguous(),
            kv_len=self.kv_len if self.start is None else min(self.kv_len, self.start + self.q.shape[1]),
        )

    def results(self) -> tuple[Tensor, Tensor]:
        """Memory for outputs [B, Q, H, D] and log-sum-exp [B, Q, H], the latter empty unless asked for."""
        out = torch.empty_like(self.q, memory_format=torch.contiguous_format)
        return out, self.q.new_empty(self.q.shape[:3] if self.return_lse else 0, dtype=torch.float32)

    def partial_results(self, splits: int) -> tuple[Tensor, Tensor]:
        """Memory for float32 [splits, B, Q, H, D] and [splits, B, Q, H]."""
        shape = (splits, *self.q.shape)
        return self.q.new_empty(shape, dtype=torch.float32), self.q.new_empty(shape[:-1], dtype=torch.float32)

    def strides(self) -> list[int]:
        """Three each of q, k_cache and v_cache; two each of slots, valid and block. Absent or shared axes have 0."""
        valid, block = self.valid, self.block
        return [
            *self.q.stride()[:3],
            *self.k_cache.stride()[:3],
            *self.v_cache.stride()[:3],
            *self.slots.stride(),
            *((0, 0) if valid is None else valid.stride()),
            *((0, 0) if block is None else (block.stride(0) if block.shape[0] > 1 else 0, block.stride(1))),
        ]
