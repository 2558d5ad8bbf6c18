"""The VQ tokenizer: image <-> grid of codebook indices.

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
    """Sizes of a VQ tokenizer with `codebook_size` codes of `code_dim`, l2-normalised.

    Every level of `channels` halves the side. `fold` px a side are folded into channels before the first level and
    unfolded behind the last one: convolutions at full resolution cost most and carry least. `width` is that of the
    token grid (0: as the last level), where `encoder_blocks` and `decoder_blocks` run.
    """

    codebook_size: int = 512
    code_dim: int = 8
    channels: tuple[int, ...] = (32, 64, 128)
    decoder_blocks: int = 3
    encoder_blocks: int = 0
    fold: int = 1
    width: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if self.fold < 1 or self.width < 0 or self.encoder_blocks < 0 or self.decoder_blocks < 0:
            raise ValueError(f"a tokenizer folds at least 1 px and has no negative sizes, got {self}")
        if self.codebook_size < 2 or self.code_dim < 1 or not self.channels:
            raise ValueError(f"a tokenizer needs at least 2 codes, 1 code dimension and 1 level, got {self}")

    @property
    def patch(self) -> int:
        """Pixels a token side."""
        return int(self.fold * 2 ** len(self.channels))

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

    config_class = TokenizerConfig

    codebook: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        widths, fold = list(config.channels), config.fold
        last, pixel = config.width or widths[-1], 3 * fold**2
        layers: list[nn.Module] = [nn.PixelUnshuffle(fold)] if fold > 1 else []
        # Padding by repetition: a background at the border gives the same token as one in the middle.
        layers += [nn.Conv2d(pixel, widths[0], 3, padding=1, padding_mode="replicate")]
        for width, wider in zip(widths, [*widths[1:], last], strict=True):
            layers += [Residual(width, "replicate"), nn.Conv2d(width, wider, 2, stride=2)]
        layers += [Residual(last, "replicate") for _ in range(config.encoder_blocks)]
        layers += [nn.SiLU(), nn.Conv2d(last, config.code_dim, 1)]
        self.encoder = nn.Sequential(*layers)
        layers = [nn.Conv2d(config.code_dim, last, 3, padding=1)]
        layers += [Residual(last) for _ in range(config.decoder_blocks)]
        for width, narrower in zip([last, *widths[:0:-1]], widths[::-1], strict=True):
            layers += [nn.Conv2d(width, 4 * narrower, 1), nn.PixelShuffle(2), Residual(narrower)]
        layers += [nn.SiLU(), nn.Conv2d(widths[0], pixel, 3, padding=1)]
        if fold > 1:
            layers.append(nn.PixelShuffle(fold))
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
