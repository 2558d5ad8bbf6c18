"""A linear layer that is fast for the few rows of a decoding step on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """`nn.Linear` without bias.

    At one to four float32 rows, such as the CFG pair of one request, the BLAS of CPU builds reads the weights at a
    quarter to half of the speed that memory allows. With the weights as the left factor, of two columns at least, it
    does not (benchmarks/few_rows.py); one row alone is better off so where several threads share it.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        # A wide input is better served the usual way from three rows on.
        self._few = 4 if out_features >= in_features else 2

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        weight = self.weight
        if (
            rows > self._few
            or (rows == 1 and torch.get_num_threads() == 1)
            or not x.is_cpu
            or x.dtype != torch.float32
            or torch.is_grad_enabled()
        ):
            return F.linear(x, weight)
        flat = x.reshape(rows, -1)
        product = torch.mm(weight, (flat if rows > 1 else flat.repeat(2, 1)).t())
        return product[:, :rows].t().contiguous().view(*x.shape[:-1], self.out_features)
