"""Calls of `verify_attention` drawn at random, and what they must give, in float64 and without code of the package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mulosd.kernels import masks


@dataclass
class Case:
    """Arguments of one call; `mask` [B or 1, Q, Q] is what `block` packs."""

    q: Tensor
    k: Tensor
    v: Tensor
    slots: Tensor
    kv_len: int
    valid: Tensor | None = None
    mask: Tensor | None = None
    counts: Tensor | None = None
    start: int | None = None
    scale: float | None = None
    cache_rows: Tensor | None = None

    def options(self) -> dict[str, Any]:
        block = None if self.mask is None else masks.pack(self.mask)
        return {
            "kv_len": self.kv_len,
            "start": self.start,
            "scale": self.scale,
            "block": block,
            "counts": self.counts,
            "return_lse": True,
            "cache_rows": self.cache_rows,
        }

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        return self.q, self.k, self.v, self.slots, self.valid

    def to(self, device: str) -> Case:
        moved = {n: t.to(device) for n, t in vars(self).items() if isinstance(t, Tensor)}
        return Case(**(vars(self) | moved))

    def row(self, b: int) -> int:
        """The row of the caches that request b has."""
        return b if self.cache_rows is None else int(self.cache_rows[b])

    def seen(self, b: int, i: int) -> list[int]:
        """The slots whose keys query i sees, committed ones first."""
        end = self.q.shape[1] if self.counts is None else int(self.counts[b])
        if i >= end:
            return []
        last = min(self.kv_len, int(self.slots[b, i]) + 1)
        committed = [s for s in range(last) if self.valid is None or bool(self.valid[b, s])]
        if self.mask is None:
            return committed
        row = self.mask[b if len(self.mask) > 1 else 0, i]
        return committed + [int(self.slots[b, j]) for j in range(end) if bool(row[j])]


def oracle(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """One query and head at a time, float64, with the visible slots picked out by name."""
    batch, queries, heads, dim = case.q.shape
    group = heads // case.k.shape[2]
    scale = dim**-0.5 if case.scale is None else case.scale
    q, k, v = (t.double().numpy() for t in (case.q, case.k, case.v))
    out, lse = np.zeros(q.shape), np.full(q.shape[:3], -np.inf)
    for b in range(batch):
        for i in range(queries):
            seen = case.seen(b, i)
            for h in range(heads if seen else 0):
                score = k[case.row(b), seen, h // group] @ q[b, i, h] * scale
                weight = np.exp(score - score.max())
                out[b, i, h] = weight @ v[case.row(b), seen, h // group] / weight.sum()
                lse[b, i, h] = score.max() + np.log(weight.sum())
    return out, lse


def poison(case: Case) -> None:
    """Overwrite by NaN all keys and values that no query of their row of the caches sees."""
    batch, queries = case.slots.shape
    for other in set(range(len(case.k))) - {case.row(b) for b in range(batch)}:
        case.k[other], case.v[other] = torch.nan, torch.nan
    for b in range(batch):
        hidden = torch.ones(case.k.shape[1], dtype=torch.bool)
        hidden[sorted({s for i in range(queries) for s in case.seen(b, i)})] = False
        case.k[case.row(b), hidden] = torch.nan
        case.v[case.row(b), hidden] = torch.nan


MASKS = ("none", "causal", "random", "ones", "holes", "tree", "islands")


def draft_mask(kind: str, batch: int, queries: int, generator: torch.Generator) -> Tensor | None:
    """A mask [B or 1, Q, Q]: "random" is not triangular, "holes" has rows without a bit and keys that nobody sees."""
    if kind == "none":
        return None
    if kind == "causal":
        return masks.raster_causal(queries)[None]
    if kind == "ones":
        return torch.ones(1, queries, queries, dtype=torch.bool)
    if kind == "tree":
        parents = [int(torch.randint(-1, i, (), generator=generator)) if i else -1 for i in range(queries)]
        return masks.tree(torch.tensor(parents))[None]
    if kind == "islands":
        labels = torch.randint(0, 4, (batch, queries), generator=generator)
        return torch.stack([masks.islands(row) for row in labels])
    mask = torch.rand(batch, queries, queries, generator=generator) < 0.3
    if kind == "holes":
        mask &= torch.rand(batch, queries, 1, generator=generator) < 0.5
        mask &= torch.rand(batch, 1, queries, generator=generator) < 0.5
        mask[:, :, : queries // 2] = False
    return mask


def draw(
    seed: int = 0,
    *,
    batch: int = 2,
    queries: int = 5,
    prefix: int = 40,
    heads: tuple[int, int] = (2, 2),
    dim: int = 64,
    mask: str = "causal",
    scattered: bool = True,
    some_valid: bool = False,
    ragged: bool = False,
    layout: str = "plain",
    dtype: torch.dtype = torch.float32,
    scale: float | None = None,
    indexed: bool = False,
) -> Case:
    """A call with the committed keys before `prefix` and the draft behind or, where `some_valid`, among them; where
    `indexed`, its rows of the caches are some of many, in any order."""
    generator = torch.Generator().manual_seed(seed)
    size = prefix + queries + 7

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    cache_rows = torch.randperm(batch + 3, generator=generator)[:batch] if indexed else None
    rows = batch + 3 if indexed else batch
    if layout == "plain":
        k, v = rand(rows, size, heads[1], dim), rand(rows, size, heads[1], dim)
    elif layout == "by head":  # [B, Hkv, S, D] in memory
        k, v = (rand(rows, heads[1], size, dim).transpose(1, 2) for _ in range(2))
    else:  # keys and values of all requests interleaved slot by slot
        k, v = rand(size, rows, 2, heads[1], dim).permute(1, 0, 2, 3, 4).unbind(2)
    start = None
    if not scattered:
        start = prefix
        slots = (start + torch.arange(queries)).expand(batch, queries)
    else:
        first = 0 if some_valid else prefix
        slots = torch.stack([first + torch.randperm(size - first, generator=generator)[:queries] for _ in range(batch)])
    words = draft_mask(mask, batch, queries, generator)
    valid = None
    kv_len = prefix if words is not None else int(slots.max()) + 1 if batch else size
    if some_valid:
        valid = torch.rand(batch, size, generator=generator) < 0.6
        if words is not None:
            valid[torch.arange(batch)[:, None], slots] = False
            kv_len = size
    counts = torch.randint(0, queries + 1, (batch,), generator=generator) if ragged else None
    if counts is not None:
        counts[0] = queries
    return Case(
        rand(batch, queries, heads[0], dim), k, v, slots, kv_len, valid, words, counts, start, scale, cache_rows
    )


def check(case: Case, backend: str, tolerance: float, splits: int | None = None, clean: bool = False) -> None:
    """Compare one call with the oracle; kernels must not mind NaN in what nobody sees (`clean` leaves it out)."""
    from mulosd.kernels import verify_attention

    out, lse = oracle(case)
    if not clean:
        poison(case)
    got, got_lse = verify_attention(*case.tensors(), **case.options(), splits=splits, backend=backend)
    assert got.shape == case.q.shape and got.dtype == case.q.dtype
    assert got_lse.dtype == torch.float32
    np.testing.assert_allclose(got.double().numpy(), out, atol=tolerance, rtol=0)
    np.testing.assert_allclose(got_lse.double().numpy(), lse, atol=tolerance, rtol=tolerance)
    unseen = torch.from_numpy(np.isneginf(lse))
    assert (got[unseen] == 0).all()
