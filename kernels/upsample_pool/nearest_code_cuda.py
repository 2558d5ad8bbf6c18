"""CUDA backend of `nearest_code` and `shuffle_nearest`: features in registers, tiles of codes shared."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .. import native
from ..native import unusable
from .call import NearestCall
from .cells import Cells, decline_shapes

__all__ = ["decline", "run", "unusable"]

# Blocks of 512 threads that fit on a multiprocessor, by the registers of the widest codes.
RESIDENT = 1


def choose_split(cells: int, vocab: int, dim: int, processors: int) -> tuple[int, int]:
    """Blocks that share the codes of a cell, and codes of each: as many as fill the device, each with whole tiles."""
    padded = next(size for size in (8, 16, 32, 64) if dim <= size)
    blocks, tile = -(-cells // (64 if padded <= 16 else 32)), 4096 // padded
    splits = max(1, min(RESIDENT * processors // max(1, blocks), -(-vocab // tile)))
    codes = -(-vocab // (splits * tile)) * tile
    return -(-vocab // codes), codes


@lru_cache(maxsize=16)
def _processors(index: int | None) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


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
    vocab, dim = codebook.shape
    splits, split_codes = choose_split(code.numel(), vocab, dim, _processors(features.device.index))
    shape = (splits if splits > 1 else 0, code.numel())
    partial = features.new_empty(shape, dtype=torch.float32)
    partial_code = features.new_empty(shape, dtype=torch.int32)
    with torch.cuda.device(features.device):
        native.module().nearest_code(
            (features.data_ptr(), *cells.strides, native.TYPES[features.dtype], cells.height, cells.width, r),
            (codebook.data_ptr(), codebook.stride(0), vocab, dim),
            0 if table is None else table.data_ptr(),
            sets.shape[-1],
            code.numel(),
            code.data_ptr(),
            sets.data_ptr(),
            (splits, split_codes, partial.data_ptr(), partial_code.data_ptr()),
            native.stream(features),
        )
    return code, sets
