"""The specification of `upsample_pool` in plain torch."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..sampling import processed_logits

# Similarities held at once: 2**22 float32 are 16 MiB.
CHUNK = 1 << 22


class PooledMass(NamedTuple):
    """Pooled probability `mass` float32 [R] and decision `accept` bool [R]."""

    mass: Tensor
    accept: Tensor


def nearest_code_reference(
    features: Tensor, codebook: Tensor, r: int, neighbours: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Codes int64 [B, h*r, w*r] of features [B, d*r*r, h, w] shuffled by r, and their rows of `neighbours`.

    Arguments are those of `shuffle_nearest`, already checked; without `neighbours` the second result is int32
    [B, h*r, w*r, 0].
    """
    batch, channels, height, width = features.shape
    cells = features.reshape(batch, channels // (r * r), r, r, height, width).permute(0, 4, 2, 5, 3, 1)
    rows = cells.reshape(-1, channels // (r * r)).to(codebook.dtype)
    step = max(1, CHUNK // codebook.shape[0])
    out = torch.empty(rows.shape[0], dtype=torch.int64, device=rows.device)
    for begin in range(0, rows.shape[0], step):
        similarity = F.normalize(rows[begin : begin + step], dim=-1) @ codebook.T
        best, code = similarity.max(dim=-1)
        if not best.isfinite().all():
            row = begin + int((~best.isfinite()).nonzero()[0, 0])
            raise ValueError(f"feature {row} (counted over all leading axes) is NaN or infinite")
        out[begin : begin + step] = code
    code = out.view(batch, height * r, width * r)
    if neighbours is None:
        return code, torch.empty((*code.shape, 0), dtype=torch.int32, device=code.device)
    return code, neighbours[code]


def neighbours_reference(codebook: Tensor, k: int) -> Tensor:
    """Table int32 [V, k]; arguments are those of `neighbours`, already checked."""
    if not codebook.isfinite().all():
        raise ValueError("codebook holds values that are not finite")
    vocab = codebook.shape[0]
    # float64, rounded: equal rows then give equal similarities whatever the blocking of the matrix product.
    rows = codebook.double()
    index = torch.arange(vocab, device=codebook.device)
    step = max(1, CHUNK // vocab)
    table = torch.empty(vocab, k, dtype=torch.int32, device=codebook.device)
    for begin in range(0, vocab, step):
        own = index[begin : begin + step]
        similarity = (rows[begin : begin + step] @ rows.T).float()
        similarity[own - begin, own] = math.inf
        similarity += 0.0  # -0.0 and 0.0 are one value but two bit patterns
        bits = similarity.view(torch.int32).long()
        # Monotone integer image of a float, then the index below it: all keys differ, so top-k has no ties to break.
        key = (bits ^ ((bits >> 31) & 0x7FFFFFFF)) * (1 << 32) + (vocab - 1 - index)
        table[begin : begin + step] = key.topk(k, dim=-1).indices.int()
    return table


def pooled_mass_reference(
    cond: Tensor,
    uncond: Tensor | None,
    tokens: Tensor,
    neighbours: Tensor,
    tau: float,
    cfg_scale: float,
    temperature: float,
    top_k: int,
    top_p: float,
) -> PooledMass:
    """Mass and decision; arguments are those of `pooled_mass`, already checked."""
    vocab, k = neighbours.shape
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab:
        raise ValueError(f"tokens must be in [0, {vocab}), got {int(tokens.min())} to {int(tokens.max())}")
    probability = processed_logits(cond, uncond, cfg_scale, temperature, top_k, top_p).softmax(dim=-1)
    if k == vocab:
        mass = torch.ones_like(probability[:, 0])
    else:
        # Summed in float64, so that a larger neighbourhood never has a smaller mass by rounding.
        mass = probability.gather(1, neighbours[tokens].long()).double().sum(dim=-1).float().clamp_(max=1.0)
    if mass.device.type != "cpu":
        mass = mass.where(probability[:, 0].isfinite(), 0.0)  # of a row that is not finite
    return PooledMass(mass, mass >= tau)
