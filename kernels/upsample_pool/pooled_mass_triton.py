"""Triton backend of `pooled_mass`: one program a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import native, sampling_triton
from ..jit import decline_tensors, unusable
from ..sampling_triton import (
    gather_survivors,
    key_of,
    load_logits,
    lowest_survivor,
    select,
    select_by_reading,
    stays,
    survey,
    value_of,
)
from .call import PooledCall
from .reference import PooledMass

__all__ = ["decline", "run", "unusable"]

BLOCK_K = 1024


@triton.jit
def neighbourhood_mass(
    cond,
    uncond,
    near,
    k,
    first,
    threshold,
    limit,
    maximum,
    cfg_scale,
    temperature,
    GUIDED: tl.constexpr,
    TEMPERED: tl.constexpr,
    GREEDY: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Mass of the entries near[0..k) that stay, relative to `maximum`; they are read again, one by one."""
    mass = tl.zeros((BLOCK_K,), tl.float32)
    for begin in range(0, k, BLOCK_K):
        slot = begin + tl.arange(0, BLOCK_K)
        index = tl.load(near + slot, mask=slot < k, other=-1).to(tl.int32)
        if GREEDY:
            mass += (index == first).to(tl.float32)
        else:
            z, _ = load_logits(cond, uncond, index, slot < k, cfg_scale, temperature, GUIDED, TEMPERED)
            mass += tl.where((slot < k) & stays(key_of(z), index, threshold, limit), tl.exp(z - maximum), 0.0)
    return tl.sum(mass, axis=0)


@triton.jit(do_not_specialize=["top_k"])
def pooled_mass_kernel(
    cond,
    uncond,
    token,
    neighbours,
    mass,
    accept,
    keys,
    indices,
    cond_stride,
    uncond_stride,
    vocab,
    cfg_scale,
    temperature,
    top_k,
    top_p,
    k,
    tau,
    GUIDED: tl.constexpr,
    TEMPERED: tl.constexpr,
    GREEDY: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    RESIDENT: tl.constexpr,
    BLOCK: tl.constexpr,
    SURVIVORS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """BLOCK entries at a time; RESIDENT when that is the whole row."""
    row = tl.program_id(0).to(tl.int64)
    cfg_scale = tl.full((), cfg_scale, tl.float32)
    temperature = tl.full((), temperature, tl.float32)
    top_p = tl.full((), top_p, tl.float32)
    cond += row * cond_stride
    if GUIDED:
        uncond += row * uncond_stride
    threshold = tl.zeros((), tl.uint32)  # below every key
    limit = tl.full((), 0x7FFFFFFF, tl.int32)
    first = tl.full((), -1, tl.int32)
    if RESIDENT:
        index = tl.arange(0, BLOCK)
        z, wrong = load_logits(cond, uncond, index, index < vocab, cfg_scale, temperature, GUIDED, TEMPERED)
        maximum = tl.max(z, axis=0)
        bad = tl.max(wrong.to(tl.int32), axis=0)
        if GREEDY:
            whole = tl.full((), 1.0, tl.float32)
            first = tl.min(tl.where(z == maximum, index, 0x7FFFFFFF), axis=0)
        else:
            whole = tl.sum(tl.exp(z - maximum), axis=0)
            if TOP_K or TOP_P:
                smallest, limit, whole = select(z, index, maximum, whole, top_k, top_p, vocab, TOP_K, TOP_P)
                threshold = key_of(smallest)
    else:
        FILTERED: tl.constexpr = TOP_K or TOP_P
        maximum, whole, bad, histogram = survey(
            cond, uncond, vocab, cfg_scale, temperature, GUIDED, TEMPERED, FILTERED, BLOCK
        )
        if GREEDY:
            whole = tl.full((), 1.0, tl.float32)
            first = tl.full((), 0x7FFFFFFF, tl.int32)
            for begin in range(0, vocab, BLOCK):
                index = begin + tl.arange(0, BLOCK)
                z, _ = load_logits(cond, uncond, index, index < vocab, cfg_scale, temperature, GUIDED, TEMPERED)
                first = tl.minimum(first, tl.min(tl.where(z == maximum, index, 0x7FFFFFFF), axis=0))
        if FILTERED:
            floor, count = lowest_survivor(histogram, maximum, whole, top_k, top_p, TOP_K)
            if count <= SURVIVORS:
                key, index = gather_survivors(
                    cond,
                    uncond,
                    keys + row * SURVIVORS,
                    indices + row * SURVIVORS,
                    floor,
                    vocab,
                    cfg_scale,
                    temperature,
                    GUIDED,
                    TEMPERED,
                    BLOCK,
                    SURVIVORS,
                )
                smallest, limit, whole = select(value_of(key), index, maximum, whole, top_k, top_p, vocab, TOP_K, TOP_P)
                threshold = key_of(smallest)
            else:
                threshold, limit, whole = select_by_reading(
                    cond,
                    uncond,
                    maximum,
                    whole,
                    vocab,
                    cfg_scale,
                    temperature,
                    top_k,
                    top_p,
                    GUIDED,
                    TEMPERED,
                    TOP_K,
                    TOP_P,
                    BLOCK,
                )
    own = tl.load(token + row)
    # A token out of range must not be read through.
    valid = (bad == 0) & (maximum > -float("inf")) & (own >= 0) & (own < vocab)
    count = tl.where(valid & (k < vocab), k, 0)
    near = neighbours + tl.where(valid, own, 0) * k
    part = neighbourhood_mass(
        cond,
        uncond,
        near,
        count,
        first,
        threshold,
        limit,
        maximum,
        cfg_scale,
        temperature,
        GUIDED,
        TEMPERED,
        GREEDY,
        BLOCK_K,
    )
    share = tl.minimum(tl.div_rn(part, whole), 1.0)
    share = tl.where(valid, tl.where(k < vocab, share, 1.0), 0.0)
    tl.store(mass + row, share)
    tl.store(accept + row, (share >= tl.full((), tau, tl.float32)).to(tl.int8))


def decline(call: PooledCall) -> str | None:
    """Why the kernel cannot serve these arguments, or None."""
    cond, uncond, tokens, neighbours = call.cond, call.uncond, call.tokens, call.neighbours
    if neighbours.dtype not in (torch.int32, torch.int64) or tokens.dtype != torch.int64:
        return f"neighbours must be int32 or int64 and tokens int64, got {neighbours.dtype} and {tokens.dtype}"
    return sampling_triton.decline_logits(cond) or decline_tensors(cond, uncond, tokens, neighbours)


def run(call: PooledCall) -> PooledMass:
    """Mass and decision; launched on the current stream."""
    cond, uncond, tokens, neighbours, tau, cfg_scale, temperature, top_k, top_p = call
    rows, vocab = cond.shape
    mass = torch.empty(rows, dtype=torch.float32, device=cond.device)
    accept = torch.empty(rows, dtype=torch.bool, device=cond.device)
    if rows == 0:
        return PooledMass(mass, accept)
    cond = native.rows_in_order(cond)
    uncond = None if uncond is None else native.rows_in_order(uncond)
    switches = sampling_triton.switches(uncond, vocab, temperature, top_k, top_p)
    plan = sampling_triton.plan(cond, switches)
    with sampling_triton.on_device(cond):
        pooled_mass_kernel[(rows,)](
            cond,
            uncond,
            tokens.contiguous(),
            neighbours.contiguous(),
            mass,
            accept.view(torch.int8),
            plan.keys,
            plan.indices,
            cond.stride(0),
            0 if uncond is None else uncond.stride(0),
            vocab,
            float(cfg_scale),
            float(temperature),
            top_k,
            float(top_p),
            neighbours.shape[1],
            float(tau),
            **switches,
            GREEDY=temperature == 0.0,
            BLOCK_K=BLOCK_K,
            **plan.options,
        )
    return PooledMass(mass, accept)
