"""How weights lie in memory."""

from __future__ import annotations

import torch
from torch import nn


def lay_out_linears(module: nn.Module, inputs_first: bool) -> None:
    """Lay the weights of linear layers out by input (float32 ones alone), or as torch does by output.

    Shapes and values stay. On a CPU a product of one or two rows is up to twice as fast with the former, and others
    take the same time: the kernel then adds up whole rows of weights instead of reducing over each.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            weight = part.weight.data
            turn = inputs_first and weight.dtype == torch.float32
            part.weight.data = weight.t().contiguous().t() if turn else weight.contiguous()
