"""Triton backend of `fused_linear` for few tokens: a program reads some rows of the weights, once, for all tokens."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import jit
from ..jit import unusable
from .call import Call

__all__ = ["decline", "run", "unusable"]

# Tokens of a program at most; the weights are read once for so many.
ROWS = 64
# Bytes of a row of the weights that a program reads at a time, and how many such reads are under way.
CHUNK, STAGES = 512, 4


@triton.jit(do_not_specialize=["rows"])
def fused_linear_kernel(
    x,
    weight,
    scale,
    bias,
    norm,
    residual,
    out,
    rows,
    n,
    k,
    x_stride,
    residual_stride,
    eps,
    GATED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row = tl.arange(0, BLOCK_M)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    there, wanted = row < rows, column < n
    dim = tl.arange(0, BLOCK_K)
    source = x + row[:, None] * x_stride + dim[None, :]
    # Rows of the weights as columns: neighbours in memory are neighbours in K.
    first = weight + column.to(tl.int64)[None, :] * k + dim[:, None]
    second = first + n.to(tl.int64) * k

    if norm is not None:
        squares = tl.zeros([BLOCK_M], tl.float32)
        for start in range(0, k, BLOCK_K):
            part = tl.load(source + start, mask=there[:, None] & (start + dim < k)[None, :], other=0.0).to(tl.float32)
            squares += tl.sum(part * part, axis=1)
        shrink = 1.0 / tl.sqrt_rn(squares / k + eps)

    gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    value = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, k, BLOCK_K):
        inside = start + dim < k
        part = tl.load(source + start, mask=there[:, None] & inside[None, :], other=0.0)
        if norm is not None:
            factor = tl.load(norm + start + dim, mask=inside, other=0.0).to(tl.float32)
            part = (part.to(tl.float32) * shrink[:, None] * factor[None, :]).to(x.dtype.element_ty)
        read = inside[:, None] & wanted[None, :]
        weights = tl.load(first + start, mask=read, other=0.0).to(x.dtype.element_ty)
        gate = tl.dot(part, weights, gate, input_precision="ieee")
        if GATED:
            weights = tl.load(second + start, mask=read, other=0.0).to(x.dtype.element_ty)
            value = tl.dot(part, weights, value, input_precision="ieee")

    gate = _finished(gate, scale, bias, column, wanted)
    if GATED:
        value = _finished(value, scale, bias, column + n, wanted)
        gate = gate / (1.0 + tl.exp(-gate)) * value
    write = there[:, None] & wanted[None, :]
    if residual is not None:
        gate += tl.load(residual + row[:, None] * residual_stride + column[None, :], mask=write, other=0.0).to(
            tl.float32
        )
    tl.store(out + row[:, None] * n + column[None, :], gate.to(out.dtype.element_ty), mask=write)


@triton.jit
def _finished(product, scale, bias, column, wanted):
    """Products [M, N] in units of their weights, with what is added to each."""
    if scale is not None:
        product *= tl.load(scale + column, mask=wanted, other=0.0)[None, :]
    if bias is not None:
        product += tl.load(bias + column, mask=wanted, other=0.0).to(tl.float32)[None, :]
    return product


def decline(call: Call) -> str | None:
    """Why the kernel cannot serve these arguments, or None."""
    tensors = jit.decline_tensors(call.x, call.weight, call.scale, call.bias, call.norm, call.residual)
    if tensors is not None:
        return tensors
    rows = call.x.numel() // max(1, call.x.shape[-1])
    if rows > ROWS:
        return f"it is for up to {ROWS} tokens, got {rows}: more are a product for the library of the device"
    if not call.weight.is_contiguous():
        return f"weights must be contiguous, got strides {call.weight.stride()}"
    if call.weight.dtype != torch.float8_e4m3fn or not call.x.is_cuda:
        return None
    new = torch.cuda.get_device_capability(call.x.device) >= (8, 9)
    return None if new else "float8_e4m3fn needs a device of sm_89 or later"


def shape(rows: int, itemsize: int, gated: bool) -> dict[str, int]:
    """Sizes of the blocks for so many tokens and bytes of an element of `x`."""
    return {
        "BLOCK_M": max(16, triton.next_power_of_2(rows)),
        "BLOCK_N": 16,
        "BLOCK_K": CHUNK // itemsize // (2 if gated or rows > 32 else 1),
    }


def run(call: Call) -> Tensor:
    """The layer's output; one launch."""
    x, weight, scale, bias, norm, eps, gated, residual = call
    n, k = weight.shape[0] // (2 if gated else 1), weight.shape[1]
    flat = x.reshape(-1, k)
    flat = flat if flat.stride(1) == 1 else flat.contiguous()
    out = torch.empty(*x.shape[:-1], n, dtype=x.dtype, device=x.device)
    rows = flat.shape[0]
    if rows == 0 or n == 0:
        return out
    added = None if residual is None else residual.reshape(-1, n)
    added = added if added is None or added.stride(1) == 1 else added.contiguous()
    scale, bias, norm = (None if t is None else t.contiguous() for t in (scale, bias, norm))
    block = shape(rows, x.element_size(), gated)
    with jit.on_device(x):
        fused_linear_kernel[(triton.cdiv(n, block["BLOCK_N"]),)](
            flat,
            weight,
            scale,
            bias,
            norm,
            added,
            out,
            rows,
            n,
            k,
            flat.stride(0),
            0 if added is None else added.stride(0),
            eps,
            GATED=gated,
            **block,
            num_warps=4,
            num_stages=STAGES,
        )
    return out
