"""`Linear`, and the ways in which a CPU can multiply by its weights.

Which of them is the fastest depends on the CPU, the number of rows and the shape: `engine.linear_choice` measures, and
leaves what it chose with each layer. A layer that nothing was chosen for is multiplied by `F.linear`.
"""

from __future__ import annotations

from bisect import bisect_left

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.fused_linear import OP as FUSED_LINEAR
from ...kernels.fused_linear.call import Call as Fused
from ...kernels.narrow import multiplies

# The most rows of each class, and the rows with which it is measured; the last class has no end.
CLASS_ENDS = (1, 2, 4, 16, 128, 512)
CLASS_ROWS = (1, 2, 4, 12, 64, 256, 1024)
# Of the classes, those that the host kernels serve.
FEW_CLASSES = 4
WAYS = ("torch", "left", "onednn", "native")


def row_class(rows: int) -> int:
    """The class of a number of rows."""
    return bisect_left(CLASS_ENDS, rows)


# By the type of the input, the way (one of `WAYS`) of each class of rows; empty is `F.linear` always.
Ways = dict[torch.dtype, tuple[str, ...]]


def way_of(ways: Ways, x: Tensor) -> str:
    """The way that was chosen for an input, "torch" where none was."""
    chosen = ways.get(x.dtype) if ways else None
    if chosen is None or not x.is_cpu or torch.is_grad_enabled():
        return "torch"
    return chosen[row_class(x.numel() // x.shape[-1])]


class Linear(nn.Linear):
    """`nn.Linear`, without bias unless asked for.

    Without gradients an input of another type than the weight's is multiplied in the input's.

    Attributes:
        ways: how inputs are multiplied on a CPU.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.ways: Ways = {}
        # Copies of the weight in other types, and as oneDNN packs them.
        self._narrowed: dict[torch.dtype, Tensor] = {}
        self._packed: dict[torch.dtype, Tensor] = {}
        self._copied: tuple[object, ...] = ()

    def _forget_copies_of_another_weight(self) -> None:
        weight = self.weight
        now = (weight._version, weight.device, weight.dtype, weight.data_ptr() if weight.is_cpu else 0)
        if self._copied != now:
            self._narrowed, self._packed, self._copied = {}, {}, now

    def narrowed(self, dtype: torch.dtype) -> Tensor:
        """The weight in another type: a copy that is kept until the weight changes."""
        self._forget_copies_of_another_weight()
        if dtype not in self._narrowed:
            self._narrowed[dtype] = self.weight.detach().to(dtype)
        return self._narrowed[dtype]

    def packed(self, dtype: torch.dtype) -> Tensor:
        """The weight in a type and in the order that oneDNN wants: a copy that is kept until the weight changes."""
        self._forget_copies_of_another_weight()
        if dtype not in self._packed:
            self._packed[dtype] = pack(self.weight.detach().to(dtype))
        return self._packed[dtype]

    def way(self, x: Tensor) -> str:
        """How an input is multiplied."""
        return way_of(self.ways, x)

    def forward(self, x: Tensor) -> Tensor:
        way = self.way(x)
        bias: Tensor | None = self.bias
        narrow = x.dtype != self.weight.dtype and not torch.is_grad_enabled()
        if bias is not None and narrow:
            bias = bias.to(x.dtype)
        if way == "onednn":
            return packed_linear(x, self.packed(x.dtype), bias)
        if way == "torch" and widens(x):
            return wide_linear(x, self.weight, self.bias)
        weight = self.narrowed(x.dtype) if narrow else self.weight
        if way == "native":
            out: Tensor = FUSED_LINEAR(Fused(x, weight, None, bias), "cpu")
            return out
        if way == "left":
            return left_linear(x, weight, bias)
        return F.linear(x, weight, bias)


def left_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The weights as the left factor, of two columns at least: some BLAS read them faster so where rows are few."""
    rows = x.numel() // x.shape[-1]
    flat = x.reshape(rows, -1)
    product = torch.mm(weight, (flat if rows > 1 else flat.repeat(2, 1)).t())
    out = product[:, :rows].t().contiguous().view(*x.shape[:-1], weight.shape[0])
    return out if bias is None else out + bias


def widens(x: Tensor) -> bool:
    """Whether "torch" multiplies an input in float32: many rows of a type that this CPU does not multiply."""
    return x.is_cpu and not multiplies(x.dtype) and x.numel() > CLASS_ENDS[FEW_CLASSES - 1] * x.shape[-1]


def wide_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` in float32, rounded to the type of x once."""
    return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)


def has_onednn(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this build of torch multiplies by weights of a type that oneDNN packed, on this CPU."""
    built = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return built and dtype in (torch.float32, torch.bfloat16) and multiplies(dtype)


def pack(weight: Tensor) -> Tensor:
    """A weight [N, K] in the order that oneDNN wants."""
    with torch.inference_mode(False), torch.no_grad():
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
    return packed


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` by oneDNN, of a weight that `pack` made."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return out
