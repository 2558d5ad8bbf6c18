"""The VQ tokenizer: image <-> grid of codebook indices, 8 px a token.

The encoder sees little beyond its own patch, so that one object gives the same tokens wherever it stands on the
token grid; the decoder looks wider, which costs nothing in determinism.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class TokenizerConfig:
    """Sizes of a VQ tokenizer. `codebook_size` codes of `code_dim`, l2-normalised; `channels` per resolution level."""

    codebook_size: int = 512
    code_dim: int = 8
    channels: tuple[int, ...] = (32, 64, 128)
    decoder_blocks: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if self.codebook_size < 2 or self.code_dim < 1 or not self.channels:
            raise ValueError(f"a tokenizer needs at least 2 codes, 1 code dimension and 1 level, got {self}")

    @property
    def patch(self) -> int:
        """Pixels a token side."""
        return int(2 ** len(self.channels))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TokenizerConfig:
        return cls(**{**values, "channels": tuple(values["channels"])})

    def to_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "channels": list(self.channels)}


class Residual(nn.Module):
    """Residual pair of a 3x3 and a pointwise convolution."""

    def __init__(self, channels: int, padding_mode: Literal["zeros", "replicate"] = "zeros") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, padding_mode=padding_mode)
        self.conv2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class Tokenizer(nn.Module):
    """Vector-quantised auto-encoder with an l2-normalised codebook (van den Oord et al. 2017; Yu et al. 2022)."""

    codebook: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        widths = list(config.channels)
        # Padding by repetition: a background at the border gives the same token as one in the middle.
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1, padding_mode="replicate")]
        for width, wider in zip(widths, [*widths[1:], widths[-1]], strict=True):
            layers += [Residual(width, "replicate"), nn.Conv2d(width, wider, 2, stride=2)]
        layers += [nn.SiLU(), nn.Conv2d(widths[-1], config.code_dim, 1)]
        self.encoder = nn.Sequential(*layers)
        layers = [nn.Conv2d(config.code_dim, widths[-1], 3, padding=1)]
        layers += [Residual(widths[-1]) for _ in range(config.decoder_blocks)]
        for width, narrower in zip([widths[-1], *widths[:0:-1]], widths[::-1], strict=True):
            layers += [nn.Conv2d(width, 4 * narrower, 1), nn.PixelShuffle(2), Residual(narrower)]
        layers += [nn.SiLU(), nn.Conv2d(widths[0], 3, 3, padding=1)]
        self.decoder = nn.Sequential(*layers)
        self.register_buffer("codebook", F.normalize(torch.randn(config.codebook_size, config.code_dim), dim=-1))

    def latents(self, image: Tensor) -> Tensor:
        """Unit-length encoder outputs [B, h, w, code_dim] of images [B, 3, H, W] in [-1, 1]."""
        z = self.encoder(image)
        return F.normalize(z.permute(0, 2, 3, 1).float(), dim=-1)

    def quantize(self, z: Tensor) -> Tensor:
        """Nearest code by cosine: unit vectors [..., code_dim] -> int64 indices [...]."""
        return (z @ self.codebook.t()).argmax(dim=-1)

    def encode(self, image: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1], sides multiples of `patch` -> int64 indices [B, h, w]."""
        patch = self.config.patch
        if image.dim() != 4 or image.shape[1] != 3 or image.shape[2] % patch or image.shape[3] % patch:
            raise ValueError(
                f"encode takes images [B, 3, H, W] with sides that are multiples of {patch}, got {tuple(image.shape)}"
            )
        return self.quantize(self.latents(image))

    def decode_latents(self, z: Tensor) -> Tensor:
        """Code vectors [B, h, w, code_dim] -> images [B, 3, H, W], not clipped."""
        return self.decoder(z.permute(0, 3, 1, 2)).float()

    def decode(self, indices: Tensor) -> Tensor:
        """Indices [B, h, w] -> images [B, 3, H, W] in [-1, 1]."""
        return self.decode_latents(self.codebook[indices]).clamp(-1, 1)
