"""Logit processing shared by sampling and verification: guidance, temperature, top-k, top-p."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def check_logits(cond: Tensor, uncond: Tensor | None) -> None:
    """Raise ValueError unless `cond` is floating [R, V] and `uncond` is None or matches it."""
    if cond.dim() != 2 or not cond.is_floating_point() or cond.shape[1] < 1:
        raise ValueError(f"cond must be floating point [R, V] with V >= 1, got {cond.dtype} {list(cond.shape)}")
    if uncond is not None and (uncond.shape != cond.shape or uncond.dtype != cond.dtype):
        raise ValueError(
            f"uncond must match cond ({cond.dtype} {list(cond.shape)}), got {uncond.dtype} {list(uncond.shape)}"
        )


def check_sampling(cfg_scale: float, temperature: float, top_k: int, top_p: float) -> None:
    """Raise ValueError for sampling parameters outside their range."""
    if not math.isfinite(cfg_scale):
        raise ValueError(f"cfg_scale must be finite, got {cfg_scale}")
    if not 0.0 <= temperature < math.inf:
        raise ValueError(f"temperature must be finite and at least 0 (0 is greedy), got {temperature}")
    if top_k < 0:
        raise ValueError(f"top_k must be at least 0 (0 is off), got {top_k}")
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p must be in (0, 1] (1 is off), got {top_p}")


def check_rows(best: Tensor) -> None:
    """Raise ValueError that names the first row whose maximum is not finite.

    A maximum propagates NaN, so the row maxima alone tell whether any entry is NaN or +inf, or all are -inf.
    """
    if not best.isfinite().all():
        row = int((~best.isfinite()).nonzero()[0, 0])
        raise ValueError(f"logits of row {row} hold NaN or +inf, or are all -inf (maximum {best[row].item()})")


def guide(cond: Tensor, uncond: Tensor | None, cfg_scale: float) -> Tensor:
    """Classifier-free guidance `uncond + cfg_scale * (cond - uncond)`; `cond` itself when `uncond` is None.

    `lerp` is exact at scale 0 and 1, where the plain formula rounds.
    """
    return cond if uncond is None else torch.lerp(uncond, cond, cfg_scale)


def mask_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Set entries below the k-th largest of their row to -inf; entries equal to it stay, however many they are."""
    threshold = logits.topk(top_k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < threshold, -math.inf)


def mask_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of most likely entries whose mass reaches top_p; ties go to the lower index."""
    if logits.is_cpu and logits.dtype == torch.float32 and not logits.requires_grad:
        return mask_top_p_by_values(logits, top_p)
    ordered, index = logits.sort(dim=-1, descending=True, stable=True)
    mass = ordered.softmax(dim=-1).cumsum(dim=-1)
    drop = torch.zeros_like(ordered, dtype=torch.bool)
    drop[:, 1:] = mass[:, :-1] >= top_p  # an entry goes when those before it already reach top_p
    return logits.masked_fill(torch.zeros_like(drop).scatter_(-1, index, drop), -math.inf)


def mask_top_p_by_values(logits: Tensor, top_p: float) -> Tensor:
    """`mask_top_p` by the least value that is kept: numpy sorts values in a tenth of the time that torch takes to sort
    them with their places."""
    ordered = torch.from_numpy(np.sort(logits.numpy(), axis=-1)).flip(-1)
    mass = ordered.softmax(dim=-1).cumsum(dim=-1)
    kept = 1 + (mass[:, :-1] < top_p).sum(dim=-1, keepdim=True)
    least = ordered.gather(-1, kept - 1)
    drop, equal = logits < least, logits == least
    room = kept - (logits > least).sum(dim=-1, keepdim=True)
    if bool((equal.sum(dim=-1, keepdim=True) > room).any()):
        drop |= equal & (equal.cumsum(dim=-1) > room)
    return logits.masked_fill(drop, -math.inf)


def processed_logits(
    cond: Tensor, uncond: Tensor | None, cfg_scale: float, temperature: float, top_k: int, top_p: float
) -> Tensor:
    """Logits after guidance, temperature, top-k and top-p, in this order; dropped entries are -inf.

    Args:
        cond: float [R, V], logits under the condition; float32 is the specification, other types are widened to it.
        uncond: like `cond`, logits without the condition, or None for no guidance.
        cfg_scale: guidance scale; 1 gives `cond`, 0 gives `uncond`.
        temperature: divides the logits; 0 is greedy: all but the first maximum of a row become -inf.
        top_k: keep the k largest and whatever equals the k-th; 0, or at least V, is off.
        top_p: keep the smallest set that reaches this mass of the distribution left by top-k; 1 is off.

    Returns:
        float32 [R, V]. On a GPU, which is not waited for, the softmax of a row that the CPU raises for is NaN
        throughout.

    Raises:
        ValueError: an argument is out of range, or a row holds NaN or +inf, or nothing but -inf (the row is named).
    """
    check_logits(cond, uncond)
    check_sampling(cfg_scale, temperature, top_k, top_p)
    logits = guide(cond.float(), None if uncond is None else uncond.float(), cfg_scale)
    best, first = logits.max(dim=-1, keepdim=True)
    if best.device.type == "cpu":
        check_rows(best)
    if temperature == 0.0:
        return torch.full_like(logits, -math.inf).scatter_(-1, first, best)
    logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        logits = mask_top_k(logits, top_k)
    if top_p < 1.0:
        logits = mask_top_p(logits, top_p)
    return logits
