"""Sampling parameters, and the noise that makes a draw depend on (seed, position, purpose) alone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..kernels import philox
from ..kernels.local_resample import local_resample
from ..kernels.upsample_pool import PooledMass, pooled_mass

Purpose = philox.Purpose


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn: guidance, then temperature, top-k, top-p.

    Args:
        cfg_scale: classifier-free guidance; 1 is off (and halves the work).
        temperature: 0 is greedy.
        top_k: 0 is off.
        top_p: 1 is off.
    """

    cfg_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.cfg_scale) or self.cfg_scale < 0:
            raise ValueError(f"cfg_scale must be 0 or more (1 is off), got {self.cfg_scale}")
        if not math.isfinite(self.temperature) or self.temperature < 0:
            raise ValueError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1] (1 is off), got {self.top_p}")

    @property
    def guided(self) -> bool:
        """Whether the unconditional branch is needed."""
        return self.cfg_scale != 1.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Logits:
    """Float32 logits of the conditional and, with guidance, the unconditional branch, each [B, n, V]."""

    cond: Tensor
    uncond: Tensor | None

    def rows(self) -> tuple[Tensor, Tensor | None]:
        """Both branches as [B*n, V]."""
        return self.cond.flatten(0, 1), None if self.uncond is None else self.uncond.flatten(0, 1)

    @staticmethod
    def cat(parts: list[Logits]) -> Logits:
        """Join along the position axis."""
        uncond = [p.uncond for p in parts if p.uncond is not None]
        return Logits(torch.cat([p.cond for p in parts], dim=1), torch.cat(uncond, dim=1) if uncond else None)

    def __getitem__(self, index: slice) -> Logits:
        return Logits(self.cond[:, index], None if self.uncond is None else self.uncond[:, index])


class Noise:
    """Gumbel noise of a batch by raster position, drawn in blocks and kept.

    The draw at a position depends on the request's seed and the purpose only, so neither the batch nor the order of
    positions changes a token.
    """

    def __init__(self, seeds: list[int], vocab: int, purpose: Purpose, device: torch.device, block: int = 64) -> None:
        self.seeds = torch.tensor(seeds, dtype=torch.int64, device=device)
        self.vocab, self.purpose, self.block = vocab, purpose, block
        self._blocks: dict[int, Tensor] = {}

    def at(self, position: int) -> Tensor:
        """Noise [B, V] of one position shared by the batch."""
        index, offset = divmod(position, self.block)
        if index not in self._blocks:
            positions = torch.arange(index * self.block, (index + 1) * self.block, device=self.seeds.device)
            self._blocks[index] = self._draw(positions.expand(len(self.seeds), -1))
        return self._blocks[index][:, offset]

    def rows(self, positions: Tensor) -> Tensor:
        """Noise [B, n, V] of positions int64 [B, n], not kept."""
        return self._draw(positions)

    def _draw(self, positions: Tensor) -> Tensor:
        batch, n = positions.shape
        seeds = self.seeds[:, None].expand(batch, n)
        noise = philox.gumbel(seeds.reshape(-1), positions.reshape(-1), self.vocab, self.purpose)
        return noise.view(batch, n, self.vocab)


def sample(logits: Logits, gumbel: Tensor, params: SamplingParams) -> Tensor:
    """Tokens int64 [B, n] from logits [B, n, V] and noise [B, n, V]."""
    cond, uncond = logits.rows()
    tokens = local_resample(
        cond,
        uncond,
        gumbel.reshape(cond.shape),
        cfg_scale=params.cfg_scale,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
    )
    return tokens.view(logits.cond.shape[:2])


def verify(logits: Logits, tokens: Tensor, neighbours: Tensor, tau: float, params: SamplingParams) -> PooledMass:
    """Pooled mass and acceptance of tokens [B, n], both shaped [B, n]."""
    cond, uncond = logits.rows()
    result = pooled_mass(
        cond,
        uncond,
        tokens.reshape(-1),
        neighbours,
        tau=tau,
        cfg_scale=params.cfg_scale,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
    )
    return PooledMass(result.mass.view(tokens.shape), result.accept.view(tokens.shape))
