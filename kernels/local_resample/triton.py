"""Triton backend of `local_resample`: one program a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import native, sampling_triton
from ..jit import decline_tensors, unusable
from ..philox_triton import ROUGH, entry_words, gumbel, rough_gumbel, row_words
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
from .call import Call

__all__ = ["decline", "run", "unusable"]


@triton.jit
def first_best(score, index):
    """The largest score, and the lowest index that has it."""
    best = tl.max(score, axis=0)
    return best, tl.min(tl.where(score == best, index, 0x7FFFFFFF), axis=0)


@triton.jit
def best_drawn(
    z,
    index,
    cond,
    uncond,
    seed,
    position,
    purpose,
    vocab,
    cfg_scale,
    temperature,
    GUIDED: tl.constexpr,
    TEMPERED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`first_best` of a row in registers with its own noise: the logarithms are exact only where they may decide.

    A score that is less than the largest rough one by more than both errors is not the best. The logits of the others,
    seldom more than one, are read again: registers hold scores in their place.
    """
    score = z + rough_gumbel(row_words(seed, position, purpose, 0, BLOCK))
    largest = tl.max(score, axis=0)
    least = largest - (2.0 * ROUGH + 1e-6 * tl.abs(largest))  # NaN, below which nothing lies, for a row of -inf
    best = tl.full((), -float("inf"), tl.float32)
    chosen = tl.full((), 0x7FFFFFFF, tl.int32)
    at = tl.min(tl.where(score >= least, index, 0x7FFFFFFF), axis=0)
    while at < 0x7FFFFFFF:
        exact, _ = load_logits(cond, uncond, at, at < vocab, cfg_scale, temperature, GUIDED, TEMPERED)
        exact += gumbel(entry_words(seed, position, purpose, at))
        chosen = tl.where(exact > best, at, chosen)
        best = tl.maximum(best, exact)
        at = tl.min(tl.where((score >= least) & (index > at), index, 0x7FFFFFFF), axis=0)
    return best, chosen


@triton.jit
def draw_noise(noise, seed, position, purpose, begin, vocab, DRAWN: tl.constexpr, BLOCK: tl.constexpr):
    """Gumbel noise of a row's entries from `begin` on, drawn here or read."""
    if DRAWN:
        drawn = gumbel(row_words(tl.load(seed), tl.load(position), purpose, begin, BLOCK))
    else:
        index = begin + tl.arange(0, BLOCK)
        drawn = tl.load(noise + index, mask=index < vocab, other=0.0)
    return drawn


@triton.jit(do_not_specialize=["top_k", "purpose"])
def local_resample_kernel(
    cond,
    uncond,
    noise,
    seed,
    position,
    token,
    keys,
    indices,
    cond_stride,
    uncond_stride,
    vocab,
    cfg_scale,
    temperature,
    top_k,
    top_p,
    purpose,
    GUIDED: tl.constexpr,
    TEMPERED: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    NOISY: tl.constexpr,
    DRAWN: tl.constexpr,
    RESIDENT: tl.constexpr,
    BLOCK: tl.constexpr,
    SURVIVORS: tl.constexpr,
):
    """BLOCK entries at a time; RESIDENT when that is the whole row, which is then read once.

    A longer row is read once without top-k and top-p, else once to find who may survive and once to collect them.
    """
    row = tl.program_id(0).to(tl.int64)
    cfg_scale = tl.full((), cfg_scale, tl.float32)
    temperature = tl.full((), temperature, tl.float32)
    top_p = tl.full((), top_p, tl.float32)
    cond += row * cond_stride
    if GUIDED:
        uncond += row * uncond_stride
    if DRAWN:
        seed += row
        position += row
    elif NOISY:
        noise += row * vocab
    if RESIDENT:
        index = tl.arange(0, BLOCK)
        z, wrong = load_logits(cond, uncond, index, index < vocab, cfg_scale, temperature, GUIDED, TEMPERED)
        maximum = tl.max(z, axis=0)
        bad = tl.max(wrong.to(tl.int32), axis=0)
        if TOP_K or TOP_P:
            total = tl.zeros((), tl.float32)
            if TOP_P and not TOP_K:
                total = tl.sum(tl.exp(z - maximum), axis=0)
            threshold, limit, _ = select(z, index, maximum, total, top_k, top_p, vocab, TOP_K, TOP_P)
            z = tl.where(stays(z, index, threshold, limit), z, -float("inf"))
        if DRAWN:
            best, chosen = best_drawn(
                z,
                index,
                cond,
                uncond,
                tl.load(seed),
                tl.load(position),
                purpose,
                vocab,
                cfg_scale,
                temperature,
                GUIDED,
                TEMPERED,
                BLOCK,
            )
        else:
            if NOISY:
                z += tl.load(noise + index, mask=index < vocab, other=0.0)
            best, chosen = first_best(z, index)
    else:
        threshold = tl.zeros((), tl.uint32)  # below every key
        limit = tl.full((), 0x7FFFFFFF, tl.int32)
        bad = tl.zeros((), tl.int32)
        best = tl.full((), -float("inf"), tl.float32)
        chosen = tl.full((), -1, tl.int32)
        read_on = tl.full((), 1, tl.int32)
        if TOP_K or TOP_P:
            maximum, total, bad, histogram = survey(
                cond, uncond, vocab, cfg_scale, temperature, GUIDED, TEMPERED, True, BLOCK
            )
            floor, count = lowest_survivor(histogram, maximum, total, top_k, top_p, TOP_K)
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
                z = value_of(key)
                smallest, last, _ = select(z, index, maximum, total, top_k, top_p, vocab, TOP_K, TOP_P)
                score = tl.where(stays(z, index, smallest, last), z, -float("inf"))
                if DRAWN:
                    score += gumbel(entry_words(tl.load(seed), tl.load(position), purpose, index))
                else:
                    score += tl.load(noise + index, mask=index < vocab, other=0.0)
                best, chosen = first_best(score, index)
                read_on = tl.zeros((), tl.int32)
            else:
                threshold, limit, _ = select_by_reading(
                    cond,
                    uncond,
                    maximum,
                    total,
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
        if read_on > 0:
            for begin in range(0, vocab, BLOCK):
                index = begin + tl.arange(0, BLOCK)
                z, wrong = load_logits(cond, uncond, index, index < vocab, cfg_scale, temperature, GUIDED, TEMPERED)
                bad = tl.maximum(bad, tl.max(wrong.to(tl.int32), axis=0))
                score = tl.where(stays(key_of(z), index, threshold, limit), z, -float("inf"))
                if NOISY:
                    score += draw_noise(noise, seed, position, purpose, begin, vocab, DRAWN, BLOCK)
                here, where = first_best(score, index)
                chosen = tl.where(here > best, where, chosen)
                best = tl.maximum(best, here)
    tl.store(token + row, tl.where((bad > 0) | (best == -float("inf")), -1, chosen).to(tl.int64))


def decline(call: Call) -> str | None:
    """Why the kernels cannot serve these arguments, or None."""
    cond, uncond, gumbel, seed, position = call.cond, call.uncond, call.gumbel, call.seed, call.position
    if gumbel is not None and gumbel.dtype != torch.float32:
        return f"gumbel must be float32, got {gumbel.dtype}"
    for name, tensor in (("seed", seed), ("position", position)):
        if tensor is not None and tensor.dtype != torch.int64:
            return f"{name} must be int64, got {tensor.dtype}"
    return sampling_triton.decline_logits(cond) or decline_tensors(cond, uncond, gumbel, seed, position)


def run(call: Call) -> Tensor:
    """Tokens int64 [R], -1 for rows without a finite maximum; launched on the current stream."""
    cond, uncond, gumbel, cfg_scale, temperature, top_k, top_p, seed, position, purpose = call
    rows, vocab = cond.shape
    token = torch.empty(rows, dtype=torch.int64, device=cond.device)
    if rows == 0:
        return token
    cond = native.rows_in_order(cond)
    uncond = None if uncond is None else native.rows_in_order(uncond)
    noise, seed, position = (None if t is None else t.contiguous() for t in (gumbel, seed, position))
    noisy = temperature != 0.0 and (noise is not None or seed is not None)
    switches = sampling_triton.switches(uncond, vocab, temperature, top_k, top_p)
    plan = sampling_triton.plan(cond, switches)
    with sampling_triton.on_device(cond):
        local_resample_kernel[(rows,)](
            cond,
            uncond,
            noise,
            seed,
            position,
            token,
            plan.keys,
            plan.indices,
            cond.stride(0),
            0 if uncond is None else uncond.stride(0),
            vocab,
            float(cfg_scale),
            float(temperature),
            top_k,
            float(top_p),
            purpose,
            **switches,
            NOISY=noisy,
            DRAWN=noisy and noise is None,
            **plan.options,
        )
    return token
