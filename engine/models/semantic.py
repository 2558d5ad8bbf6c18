"""Codes that say what is where, and of which another model makes the image: those of GLM-Image's AR stage."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class SemanticConfig:
    """`codebook_size` codes of `code_dim` numbers, each for `patch` pixels a side of the image to come."""

    codebook_size: int = 16384
    code_dim: int = 2048
    patch: int = 32

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SemanticConfig:
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class SemanticCodes(nn.Module):
    """A codebook without a decoder: images are maps of the codes in false colours, for previews and for looking at.

    Codes that point the same way have similar colours: those of the first three principal components.
    """

    config_class = SemanticConfig

    def __init__(self, config: SemanticConfig) -> None:
        super().__init__()
        self.config = config
        self.quantize = nn.Embedding(config.codebook_size, config.code_dim)
        self._colours: tuple[int, Tensor] | None = None

    @property
    def codebook(self) -> Tensor:
        """Unit-length codes float32 [V, code_dim]."""
        return F.normalize(self.quantize.weight.float(), dim=-1)

    @property
    def colours(self) -> Tensor:
        """A colour in [-1, 1] for each code, float32 [V, 3]."""
        key = self.quantize.weight.data_ptr()
        if self._colours is None or self._colours[0] != key:
            codes = self.codebook.cpu()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # its start vectors; the same colours each time
                _, _, directions = torch.pca_lowrank(codes, q=min(3, *codes.shape))
            parts = (codes - codes.mean(dim=0)) @ directions
            parts = F.pad(parts / (2 * parts.std(dim=0) + 1e-12), (0, 3 - parts.shape[1]))
            self._colours = (key, parts.clamp(-1, 1).to(self.quantize.weight.device))
        return self._colours[1]

    def latents(self, image: Tensor) -> Tensor:
        """ValueError: there is no encoder."""
        raise ValueError(
            "these codes come of no pixels that the autoregressive stage knows, so that drafts cannot be enlarged by "
            "way of an image: take upsampler=nearest, or latent where the family has a learned one"
        )

    def encode(self, image: Tensor) -> Tensor:
        """ValueError: there is no encoder."""
        return self.latents(image)

    def decode(self, indices: Tensor) -> Tensor:
        """Indices [B, h, w] -> maps in false colours [B, 3, h * patch, w * patch] in [-1, 1]."""
        small = self.colours[indices].permute(0, 3, 1, 2)
        return small.repeat_interleave(self.config.patch, dim=2).repeat_interleave(self.config.patch, dim=3)

    def decode_latents(self, z: Tensor) -> Tensor:
        """Code vectors [B, h, w, code_dim] -> the map of the nearest codes."""
        return self.decode((F.normalize(z.float(), dim=-1) @ self.codebook.t()).argmax(dim=-1))
