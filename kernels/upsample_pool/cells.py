"""What the backends of `nearest_code` share: the shuffled map of cells, and which arguments the kernels take."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_VOCAB = 65536
MAX_DIM = 64


class Cells:
    """The cells [B, height, width] of features [B, d*r*r, h, w] after a pixel shuffle by r.

    Attributes:
        height, width: h * r and w * r.
        strides: of the features, in elements.
    """

    def __init__(self, features: Tensor, r: int) -> None:
        self.features = features
        self.height, self.width = features.shape[2] * r, features.shape[3] * r
        self.strides = features.stride()

    def outputs(self, neighbours: Tensor | None) -> tuple[Tensor, Tensor]:
        """Uninitialised codes, and sets of neighbours (of no columns without a table)."""
        shape = (self.features.shape[0], self.height, self.width)
        code = torch.empty(shape, dtype=torch.int64, device=self.features.device)
        k, dtype = (0, torch.int32) if neighbours is None else (neighbours.shape[1], neighbours.dtype)
        return code, torch.empty((*shape, k), dtype=dtype, device=self.features.device)


def decline_shapes(features: Tensor, codebook: Tensor, neighbours: Tensor | None) -> str | None:
    """Why the kernels cannot take these arguments, or None."""
    if features.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"features must be float32, float16 or bfloat16, got {features.dtype}"
    if codebook.dtype != torch.float32:
        return f"codebook must be float32, got {codebook.dtype}"
    if codebook.shape[0] > MAX_VOCAB or codebook.shape[1] > MAX_DIM:
        return f"codebook must have at most {MAX_VOCAB} rows of at most {MAX_DIM}, got {list(codebook.shape)}"
    if neighbours is not None and neighbours.dtype != torch.int32:
        return f"neighbours must be int32, got {neighbours.dtype}"
    return None
