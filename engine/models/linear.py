"""A linear layer that is fast for the few rows of a decoding step on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """`nn.Linear`, without bias unless asked for.

    Without gradients an input of another type than the weight's is multiplied in the input's.

    At one to four float32 rows, such as the CFG pair of one request, the BLAS of CPU builds reads the weights at a
    quarter to half of the speed that memory allows. With the weights as the left factor, of two columns at least, it
    does not (benchmarks/few_rows.py); one row alone is better off so where several threads share it.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)
        # A wide input is better served the usual way from three rows on.
        self._few = 4 if out_features >= in_features else 2
        self._narrowed: Tensor | None = None
        self._version = -1

    def narrowed(self, dtype: torch.dtype) -> Tensor:
        """The weight in another type: a copy that is kept until the weight changes."""
        weight, kept = self.weight, self._narrowed
        if kept is None or kept.dtype != dtype or kept.device != weight.device or self._version != weight._version:
            kept = weight.detach().to(dtype)
            self._narrowed, self._version = kept, weight._version
        return kept

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        weight, bias = self.weight, self.bias
        if x.dtype != weight.dtype and not torch.is_grad_enabled():
            return F.linear(x, self.narrowed(x.dtype), None if bias is None else bias.to(x.dtype))
        if (
            rows > self._few
            or (rows == 1 and torch.get_num_threads() == 1)
            or not x.is_cpu
            or x.dtype != torch.float32
            or torch.is_grad_enabled()
        ):
            return F.linear(x, weight, bias)
        flat = x.reshape(rows, -1)
        product = torch.mm(weight, (flat if rows > 1 else flat.repeat(2, 1)).t())
        out = product[:, :rows].t().contiguous().view(*x.shape[:-1], self.out_features)
        return out if bias is None else out + bias
