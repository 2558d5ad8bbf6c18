"""Learned latent up- and down-samplers between the token grids of a family.

Both work on codebook vectors and are row-causal: an output row sees its own and earlier input rows only, so that
rows can be up-sampled as soon as they are drafted (MuLo-SD, arXiv 2601.05149, section on up-sampling).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.upsample_pool import nearest_code


@dataclass(frozen=True)
class ResamplerConfig:
    """A latent resampler from a `source` to a `target` grid (side lengths in tokens).

    With `vocab_size` it counts the codes of the target grid, and among codes that are about equally near prefers the
    frequent one: `prior` times the log-frequency is added to the cosine. Codes may differ by 1e-5 in cosine, which no
    regression can tell apart, while the target may know one of them alone in that place.

    `temperature` makes a distribution over codes of these scores, the softmax of scores / temperature: it is that of
    the cross-entropy in training. A training file or a family.json that states none has 0.05; the up-samplers of the
    bundled family were finished at 5e-4, and state it.
    """

    source: int
    target: int
    code_dim: int
    channels: int = 128
    blocks: int = 4
    vocab_size: int = 0
    prior: float = 5e-4
    temperature: float = 0.05

    def __post_init__(self) -> None:
        small, large = sorted((self.source, self.target))
        if small < 1 or large % small or small == large:
            raise ValueError(f"one grid must be a multiple of the other, got {self.source} and {self.target}")
        if not 1e-6 <= self.temperature < math.inf:
            raise ValueError(f"the temperature of an up-sampler must be at least 1e-6, got {self.temperature}")

    @property
    def ratio(self) -> int:
        """r = larger grid / smaller grid."""
        return max(self.source, self.target) // min(self.source, self.target)

    @property
    def name(self) -> str:
        return f"{self.source}-{self.target}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class RowCausalBlock(nn.Module):
    """Residual block: channel RMSNorm, a convolution over this row and the one above, a pointwise convolution.

    Normalising over channels alone keeps the block row-causal; a norm over space would leak later rows.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.conv = nn.Conv2d(channels, channels, (2, 3), padding=(0, 1))
        self.point = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.rms_norm(x.movedim(1, -1), (x.shape[1],), self.scale.to(x.dtype), 1e-6).movedim(-1, 1)
        y = self.conv(F.pad(y, (0, 0, 1, 0)))
        return x + self.point(F.silu(y))


class LatentResampler(nn.Module):
    """Code vectors on the source grid -> features on the target grid, whose nearest codes are the tokens."""

    counts: Tensor | None

    def __init__(self, config: ResamplerConfig) -> None:
        super().__init__()
        self.config = c = config
        up = c.target > c.source
        self.up = up
        wide = c.code_dim * c.ratio**2
        self.enter = nn.Conv2d(c.code_dim if up else wide, c.channels, 1)
        self.blocks = nn.ModuleList(RowCausalBlock(c.channels) for _ in range(c.blocks))
        self.leave = nn.Conv2d(c.channels, wide if up else c.code_dim, 1)
        self.register_buffer("counts", torch.zeros(c.vocab_size) if c.vocab_size else None)

    def forward(self, codes: Tensor) -> Tensor:
        """Code vectors [B, h, w, d] (any number of leading rows of the source grid) -> features [B, h', w', d]."""
        x = codes.movedim(-1, 1)
        if not self.up:
            x = F.pixel_unshuffle(x, self.config.ratio)
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        x = self.leave(x)
        if self.up:
            x = F.pixel_shuffle(x, self.config.ratio)
        return x.movedim(1, -1)

    def resample(self, tokens: Tensor, codebook: Tensor) -> Tensor:
        """Tokens [B, h, w] of leading rows -> tokens [B, h', w'] by nearest code of `codebook` [V, d]."""
        return self.pick(self(codebook[tokens]), codebook)

    def pick(self, features: Tensor, codebook: Tensor) -> Tensor:
        """Codes int64 [...] of features [..., d]: the nearest, the more frequent of those that are about as near."""
        features = features.float()
        bonus = self.bonus()
        if bonus is None:
            return nearest_code(features, codebook)
        # One more dimension carries the bonus through the same search: [z, 1] . [c, bonus].
        unit = F.normalize(features, dim=-1)
        return nearest_code(
            torch.cat([unit, torch.ones_like(unit[..., :1])], dim=-1), torch.cat([codebook, bonus[:, None]], dim=-1)
        )

    def scores(self, features: Tensor, codebook: Tensor) -> Tensor:
        """What `pick` compares, float32 [..., V] of features [..., d], for training: gradients pass."""
        cosines = F.normalize(features.float(), dim=-1) @ codebook.t()
        bonus = self.bonus()
        return cosines if bonus is None else cosines + bonus

    def bonus(self) -> Tensor | None:
        """What a code's frequency adds to its cosine, float32 [V], or None where frequencies were not counted."""
        log_pi = self.log_frequency()
        return None if log_pi is None else self.config.prior * log_pi

    def log_frequency(self) -> Tensor | None:
        """Logarithms of the codes' frequencies up to a constant, float32 [V], smoothed; None where not counted."""
        if self.counts is None:
            return None
        return ((self.counts + 0.5) / (self.counts.sum() + 1)).log()
