"""Calls of every op at shapes without an odd edge, and the bytes that each of them cannot avoid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import attention_cases as draws
import torch

from mulosd.kernels import local_resample, pooled_mass, verify_attention

from .cases import Drawn, by_reference, codes, generator, grown, logits, writes


@dataclass(frozen=True)
class Regular:
    """One call; `floor` is the bytes that it must read and write once at least."""

    draw: Callable[[], Drawn]
    floor: int


def _attended(queries: int, keys: int, heads: tuple[int, int], dim: int, splits: int | None) -> Drawn:
    drawn = draws.draw(
        1, batch=1, queries=queries, prefix=keys, heads=heads, dim=dim, scattered=False, dtype=torch.float16
    )
    out, lse = (torch.from_numpy(x) for x in draws.oracle(drawn))

    def call(backend: str) -> tuple[torch.Tensor, ...]:
        return verify_attention(*drawn.tensors(), **drawn.options(), splits=splits, backend=backend)

    return Drawn(call, (out, lse), 2e-3)


def attention(queries: int, keys: int, heads: tuple[int, int], dim: int, splits: int | None = 1) -> Regular:
    """A draft of `queries` tokens behind `keys` committed ones, raster order, float16, with log-sum-exp."""
    cache = 2 * (keys + queries) * heads[1] * dim * 2
    results = queries * heads[0] * (2 * dim * 2 + 4) + queries * -(-queries // 32) * 4
    return Regular(partial(_attended, queries, keys, heads, dim, splits), cache + results)


def _row(op: str, vocab: int, top_k: int, top_p: float) -> Drawn:
    cond, uncond = logits(0, 1, vocab, torch.bfloat16)
    token, position = torch.tensor([7]), torch.tensor([3])
    filters = {"cfg_scale": 2.0, "top_k": top_k, "top_p": top_p}
    if op == "local_resample":
        return by_reference(
            lambda b: (local_resample(cond, uncond, **filters, seed=token, position=position, backend=b),)
        )
    near = torch.randint(vocab, (vocab, 100), generator=generator(1), dtype=torch.int32)
    return by_reference(lambda b: tuple(pooled_mass(cond, uncond, token, near, tau=0.01, **filters, backend=b)), 1e-5)


def row(op: str, vocab: int, top_k: int = 0, top_p: float = 1.0) -> Regular:
    """One guided row of bfloat16 logits."""
    return Regular(partial(_row, op, vocab, top_k, top_p), 2 * 2 * vocab + (400 if op == "pooled_mass" else 24))


def nearest(side: int, r: int, dim: int, vocab: int) -> Regular:
    """A map of side * r cells squared, float16 features, three neighbours a code."""
    cells = (side * r) ** 2
    draw = partial(codes, 0, "fp16", (1, side, side), r, dim, vocab)
    return Regular(draw, cells * (2 * dim + 8 + 12) + vocab * dim * 4 + min(cells, vocab) * 12)


def write(batch: int, tokens: int, heads: int, dim: int) -> Regular:
    """bfloat16 with rotary, slots from the host."""
    table = tokens * dim * 4
    return Regular(
        partial(writes, 1, "bf16", "bf16", (batch, tokens, heads, heads, dim), 0, True),
        batch * tokens * heads * dim * 2 * 6 + table,
    )


def islands(side: int) -> Regular:
    """One map of which a twentieth is rejected."""
    return Regular(partial(grown, (1, side, side), 0.05, 1, 3), side * side * (1 + 1 + 4 + 4))


CALLS: dict[str, Regular] = {
    "kv_write": write(1, 8, 8, 64),
    "nearest_code": nearest(8, 2, 8, 512),
    "expand_islands": islands(24),
    "local_resample": row("local_resample", 4096),
    "local_resample, filtered": row("local_resample", 4096, top_k=500, top_p=0.9),
    "pooled_mass, filtered": row("pooled_mass", 4096, top_k=500, top_p=0.9),
    "verify_attention, 1 row": attention(1, 255, (2, 2), 64),
    "verify_attention, 16 rows": attention(16, 240, (2, 2), 64),
    "verify_attention, 64 rows": attention(64, 192, (2, 2), 64),
    "verify_attention, 64 rows, 2 splits": attention(64, 192, (1, 1), 64, 2),
}
