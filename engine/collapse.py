"""The exact collapse of a prefix whose queries and keys are zero to one slot of the KV cache.

Every score of such a prefix key is zero: to a query, n visible prefix slots are one slot of key 0 whose value is the
mean of theirs and whose weight is n. The prefix itself needs no attention kernel either: each of its slots sees the
mean of the values up to it. The cache then holds 1 + N slots instead of T + N (121 of 376 for LlamaGen's captions at
256 px), and attention reads no prefix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .models.ar_model import ARModel


def run_prefix(model: ARModel, cond: Tensor, grid: int, mask: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """Run a prefix whose queries and keys are zero.

    Args:
        model: with `zero_prefix`.
        cond: condition features [B, T, ...].
        grid: side in tokens.
        mask: bool [T], prefix slots that others may see; None is all. The last one must be.

    Returns:
        The mean value [B, H, D] of the visible slots, by layer, and the float32 logits [B, V] of the first token.
    """
    x = model.embed_prefix(cond, grid)
    weight = torch.ones(x.shape[1], device=x.device) if mask is None else mask.to(x.device, torch.float32)
    count = weight.cumsum(dim=0).clamp(min=1)[:, None, None]
    means: list[Tensor] = []

    def attend(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mean = ((v.float() * weight[:, None, None]).cumsum(dim=1) / count).to(v.dtype)
        means.append(mean[:, -1])
        return mean.repeat_interleave(q.shape[2] // v.shape[2], dim=2)

    x = model.run(x, attend)
    return means, model.logits(x[:, -1])


def weigh(attended: Tensor, lse: Tensor, value: Tensor, extra: Tensor) -> Tensor:
    """Give the first slot, whose score is 0, the weight 1 + `extra` in attention that has counted it once.

    Args:
        attended: float [B, Q, H, D].
        lse: float32 [B, Q, H], the log-sum-exp of the scores.
        value: float [B, H, D], the value of the first slot.
        extra: float32 [B].
    """
    share = torch.sigmoid(extra.log()[:, None, None] - lse)[..., None]
    return torch.lerp(attended.float(), value[:, None].float(), share).to(attended.dtype)
