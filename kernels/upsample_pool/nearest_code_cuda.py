"""CUDA backend of `nearest_code` and `shuffle_nearest`: features in registers, codes through shared memory."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native
from ..native import unusable
from .call import NearestCall
from .cells import Cells, decline_shapes

__all__ = ["decline", "run", "unusable"]


def decline(call: NearestCall) -> str | None:
    """Why the kernel cannot serve these arguments, or None."""
    features, codebook, neighbours = call.features, call.codebook, call.neighbours
    for name, tensor in (("features", features), ("codebook", codebook), ("neighbours", neighbours)):
        if tensor is not None and (not tensor.is_cuda or tensor.device != features.device):
            return f"{name} must be on the CUDA device of the features, got {tensor.device}"
    return decline_shapes(features, codebook, neighbours)


def run(call: NearestCall) -> tuple[Tensor, Tensor]:
    """Codes int64 [B, h*r, w*r] and the neighbours of each [B, h*r, w*r, k]; launched on the current stream."""
    features, codebook, r, neighbours = call
    cells = Cells(features, r)
    code, sets = cells.outputs(neighbours)
    codebook = native.rows_in_order(codebook)
    table = None if neighbours is None else neighbours.contiguous()
    with torch.cuda.device(features.device):
        native.module().nearest_code(
            (features.data_ptr(), *cells.strides, native.TYPES[features.dtype], cells.height, cells.width, r),
            (codebook.data_ptr(), codebook.stride(0), *codebook.shape),
            0 if table is None else table.data_ptr(),
            sets.shape[-1],
            code.numel(),
            code.data_ptr(),
            sets.data_ptr(),
            native.stream(features),
        )
    return code, sets
