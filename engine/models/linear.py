"""A linear layer that is fast for the few rows of a decoding step on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Linear(nn.Linear):
    """`nn.Linear` without bias.

    At two to four float32 rows, such as the CFG pair of one request, the BLAS of CPU builds reads the weights at half
    the speed that memory allows. With the weights as the left factor it does not.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // max(1, x.shape[-1])
        # More rows, or a wide input, are better served the usual way (benchmarks/few_rows.py).
        few = 2 <= rows <= (4 if self.out_features >= self.in_features else 2)
        if not few or x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_grad_enabled():
            return super().forward(x)
        product = self.weight @ x.reshape(rows, -1).t()
        return product.t().contiguous().view(*x.shape[:-1], self.out_features)
