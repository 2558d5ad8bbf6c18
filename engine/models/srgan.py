"""A family's own super-resolution network: twice the side, with the texture that an enlarged draft lacks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class SuperResolverConfig:
    """Sizes of a `SuperResolver`: channels of its convolutions, and residual blocks of two of them."""

    channels: int = 28
    blocks: int = 4

    def __post_init__(self) -> None:
        if self.channels < 1 or self.blocks < 1:
            raise ValueError(f"channels and blocks must be at least 1, got {self.channels} and {self.blocks}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class SuperResolver(nn.Module):
    """Residual convolutions at the small size, then sub-pixels on top of the picture enlarged by cubic interpolation.

    Source: SRGAN, Ledig et al., arXiv 1609.04802; without batch norms as in EDSR, Lim et al., arXiv 1707.02921.
    """

    def __init__(self, config: SuperResolverConfig) -> None:
        super().__init__()
        self.config = c = config
        self.enter = nn.Conv2d(3, c.channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.SiLU(),
                nn.Conv2d(c.channels, c.channels, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(c.channels, c.channels, 3, padding=1),
            )
            for _ in range(c.blocks)
        )
        self.leave = nn.Sequential(nn.SiLU(), nn.Conv2d(c.channels, 12, 3, padding=1))
        # An untrained network enlarges as cubic interpolation does.
        for last in (*(block[-1] for block in self.blocks), self.leave[-1]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Images [B, 3, H, W] in -1..1 -> [B, 3, 2H, 2W], about -1..1."""
        x = self.enter(image)
        for block in self.blocks:
            x = x + block(x)
        cubic = F.interpolate(image, scale_factor=2, mode="bicubic", align_corners=False)
        return cubic + F.pixel_shuffle(self.leave(x), 2)

    def enlarge(self, image: Tensor, ratio: int) -> Tensor:
        """Images [B, 3, H, W] in -1..1 -> [B, 3, H*ratio, W*ratio] in -1..1, doubled again and again.

        Raises:
            ValueError: the ratio is no power of two from 2 on.
        """
        if ratio < 2 or ratio & (ratio - 1):
            raise ValueError(f"the family's super-resolution network enlarges by powers of two, not by {ratio}")
        while ratio > 1:
            image, ratio = self(image).float().clamp(-1, 1), ratio // 2
        return image
