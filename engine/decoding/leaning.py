"""Draws that lean to the draft: the target's probabilities times `exp(cos(code, z) / closeness)`.

z is what the up-sampler gave for that place before it was rounded to a code. Not from the paper: there a token that
fell is drawn from the target alone, which does not know what the draft shows further on, and now and then begins
something that nothing goes on with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..devices import upload
from ..family import Family


def check_closeness(value: float | None, *, zero: bool) -> None:
    """ValueError unless it is None, a finite number above 0, or 0 where that is something."""
    if value is None or 0 < value < math.inf or (zero and value == 0):
        return
    off = "0 (off) or " if zero else ""
    raise ValueError(f"closeness must be {off}above 0, a part of a cosine such as 0.03, got {value}")


@dataclass(frozen=True, eq=False)
class Leaning:
    """Logarithms of the factors of codes, by position.

    Args:
        z: unit vectors float32 [n, d] of the first n cells in raster order.
        codebook: unit vectors float32 [V, d].
        closeness: by how much of a cosine a code may be farther from z for a factor e in probability.
        start: position of the first cell.
    """

    z: Tensor
    codebook: Tensor
    closeness: float
    start: int = 0

    @classmethod
    def to(cls, family: Family, latents: Tensor, closeness: float, start: int = 0) -> Leaning:
        """To up-sampled latents [h, w, d] of a family, see `upsampling.upsample_with_latents`."""
        z = F.normalize(latents.flatten(0, 1).float(), dim=-1)
        return cls(z, F.normalize(family.tokenizer.codebook.float(), dim=-1), closeness, start)

    def __call__(self, positions: Sequence[int]) -> Tensor:
        """Float32 [n, V] of positions."""
        if isinstance(positions, range) and positions.step == 1:
            z = self.z[positions.start - self.start : positions.stop - self.start]
        else:
            z = self.z[upload([p - self.start for p in positions], self.z.device)]
        return z @ self.codebook.t() / self.closeness
