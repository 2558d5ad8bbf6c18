"""Triton backend of `nearest_code` and `shuffle_nearest`: a block of features against all codes, tile by tile."""

from __future__ import annotations

from functools import lru_cache

import triton
import triton.language as tl
from torch import Tensor

from ..jit import decline_tensors, unusable
from ..sampling_triton import on_device
from .call import NearestCall
from .cells import Cells, decline_shapes

__all__ = ["decline", "run", "unusable"]

BLOCK_CELLS = 64
BLOCK_CODES = 64
WARPS = 4


@triton.jit(do_not_specialize=["cells", "code_step"])
def nearest_code_kernel(
    features,
    codebook,
    table,
    code,
    sets,
    batch_stride,
    channel_stride,
    row_stride,
    column_stride,
    code_stride,
    code_step,
    cells,
    height,
    width,
    vocab,
    k,
    R: tl.constexpr,
    D: tl.constexpr,
    GATHER: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_CELLS: tl.constexpr,
    BLOCK_CODES: tl.constexpr,
):
    """Cells are counted over (batch, row, column) of the shuffled map [B, height, width]."""
    cell = tl.program_id(0).to(tl.int64) * BLOCK_CELLS + tl.arange(0, BLOCK_CELLS)
    inside = cell < cells
    column = cell % width
    row = cell // width % height
    # The pixel shuffle: channel c of cell (row, column) is channel c * R * R + (row % R) * R + column % R of the input.
    start = (
        cell // width // height * batch_stride
        + (row % R * R + column % R) * channel_stride
        + row // R * row_stride
        + column // R * column_stride
    )
    channel = tl.arange(0, BLOCK_D)
    # Cells, and codes below, side by side: that is how the product reads both from shared memory.
    x = tl.load(
        features + start[None, :] + channel[:, None].to(tl.int64) * (R * R) * channel_stride,
        mask=inside[None, :] & (channel < D)[:, None],
        other=0.0,
    ).to(tl.float32)
    finite = tl.min((tl.abs(x) < float("inf")).to(tl.int32), axis=0) > 0
    length = tl.sqrt_rn(tl.sum(x * x, axis=0))
    x = tl.trans(tl.div_rn(x, tl.maximum(length, 1e-12)[None, :] + tl.zeros(x.shape, tl.float32)))

    lane = tl.arange(0, BLOCK_CODES)
    # Each lane keeps the best of its own codes: no exchange between threads inside of the loop.
    best = tl.full((BLOCK_CELLS, BLOCK_CODES), -float("inf"), tl.float32)
    tile = tl.zeros((BLOCK_CELLS, BLOCK_CODES), tl.int32)
    for begin in range(0, vocab, BLOCK_CODES):
        index = begin + lane
        codes = tl.load(
            codebook + index[None, :].to(tl.int64) * code_stride + channel[:, None] * code_step,
            mask=(index < vocab)[None, :] & (channel < D)[:, None],
            other=0.0,
        )
        similarity = tl.dot(x, codes, input_precision="ieee")
        better = (similarity > best) & (index < vocab)[None, :]
        best = tl.where(better, similarity, best)
        tile = tl.where(better, begin, tile)
    largest = tl.max(best, axis=1)
    # The lower index at ties; a vocabulary index always fits int32.
    chosen = tl.min(tl.where(best == largest[:, None], tile + lane[None, :], 0x7FFFFFFF), axis=1)
    fine = finite & (chosen < vocab)
    chosen = tl.where(fine, chosen, -1)
    tl.store(code + cell, chosen.to(tl.int64), mask=inside)
    if GATHER:
        for begin in range(0, k, BLOCK_CODES):
            slot = begin + lane
            near = tl.load(
                table + chosen.to(tl.int64)[:, None] * k + slot[None, :],
                mask=(fine & inside)[:, None] & (slot < k)[None, :],
                other=-1,
            )
            tl.store(sets + cell[:, None] * k + slot[None, :], near, mask=inside[:, None] & (slot < k)[None, :])


@lru_cache(maxsize=1)
def least_depth() -> int:
    """The shortest axis over which Triton sums a product of float32 on a GPU: 8, or 16 in earlier versions."""
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import min_dot_size

    return int(min_dot_size(GPUTarget("cuda", 80, 32))(tl.float32, tl.float32)[2])


def decline(call: NearestCall) -> str | None:
    """Why the kernel cannot serve these arguments, or None."""
    features, codebook, neighbours = call.features, call.codebook, call.neighbours
    return decline_shapes(features, codebook, neighbours) or decline_tensors(features, codebook, neighbours)


def run(call: NearestCall) -> tuple[Tensor, Tensor]:
    """Codes int64 [B, h*r, w*r] and the neighbours of each [B, h*r, w*r, k]; launched on the current stream."""
    features, codebook, r, neighbours = call
    cells = Cells(features, r)
    code, sets = cells.outputs(neighbours)
    if code.numel() == 0:
        return code, sets
    codebook = codebook if codebook.stride(1) == 1 else codebook.contiguous()
    vocab, dim = codebook.shape
    with on_device(features):
        nearest_code_kernel[(triton.cdiv(code.numel(), BLOCK_CELLS),)](
            features,
            codebook,
            None if neighbours is None else neighbours.contiguous(),
            code,
            sets,
            *cells.strides,
            codebook.stride(0),
            codebook.stride(1),
            code.numel(),
            cells.height,
            cells.width,
            vocab,
            sets.shape[-1],
            R=r,
            D=dim,
            GATHER=neighbours is not None,
            BLOCK_D=max(least_depth(), triton.next_power_of_2(dim)),
            BLOCK_CELLS=BLOCK_CELLS,
            BLOCK_CODES=BLOCK_CODES,
            num_warps=WARPS,
            # A square contracted with the first sum of a shuffle gives the lanes of one row different lengths. The
            # products of the tile are fused all the same.
            enable_fp_fusion=False,
        )
    return code, sets
