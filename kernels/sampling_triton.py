"""Logit processing inside Triton kernels: guidance, temperature, and the exact cut of top-k and top-p.

The entries that stay are described by two numbers, a `threshold` and a `limit`: an entry stays if its key is above
the threshold, or equal to it and its index is at most the limit. A key is the order-preserving image of a float32 in
uint32, so that a bisection of keys ends, after 32 steps at the latest, with the exact value of one entry. Counts are
integers, and a sum of masses in a fixed tree never falls when entries join, so each bisected predicate is monotone.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

MINUS_INF_KEY = tl.constexpr(0x007FFFFF)
EVERY_INDEX = tl.constexpr(0x7FFFFFFF)
# A histogram bin holds the keys that share their leading eleven bits: sign, exponent, two bits of mantissa.
BINS = tl.constexpr(2048)
BIN_SHIFT = tl.constexpr(21)
# The mass of a bin is bounded from below by its lower edge; the margin covers the rounding of sums and exponentials.
MARGIN = tl.constexpr(1.0001)

# The largest row that stays in registers, and the most entries of a longer row that may be worked on there.
RESIDENT = 16384
SURVIVORS = 4096
TILE = 4096
STREAMED_WARPS = 16
MAX_VOCAB = 65536


def decline_logits(cond: Tensor) -> str | None:
    """Why the kernels cannot take these logits, or None."""
    if cond.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"logits must be float32, float16 or bfloat16, got {cond.dtype}"
    if cond.shape[1] > MAX_VOCAB:
        return f"a vocabulary of {cond.shape[1]} exceeds {MAX_VOCAB}"
    return None


def switches(uncond: Tensor | None, vocab: int, temperature: float, top_k: int, top_p: float) -> dict[str, bool]:
    """What of the processing is compiled in."""
    greedy = temperature == 0.0
    return {
        "GUIDED": uncond is not None,
        "TEMPERED": not greedy and temperature != 1.0,
        "TOP_K": not greedy and 0 < top_k < vocab,
        "TOP_P": not greedy and top_p < 1.0,
    }


def resident_shape(vocab: int) -> tuple[int, int]:
    """Block and warps of a row that stays in registers: 32 entries a thread at most."""
    block = max(128, triton.next_power_of_2(vocab))
    return block, min(16, max(4, block // 512))


class Plan(NamedTuple):
    """How rows are laid out in a kernel: scratch int32 [R, SURVIVORS] of `gather_survivors`, and launch options."""

    keys: Tensor | None
    indices: Tensor | None
    options: dict[str, int]


def plan(cond: Tensor, switches: dict[str, bool]) -> Plan:
    """A whole row in registers where it fits, else tiles of it; scratch where survivors must be collected."""
    rows, vocab = cond.shape
    resident = vocab <= RESIDENT
    block, warps = resident_shape(vocab) if resident else (TILE, STREAMED_WARPS)
    keys = indices = None
    if not resident and (switches["TOP_K"] or switches["TOP_P"]):
        keys, indices = torch.empty(2, rows, SURVIVORS, dtype=torch.int32, device=cond.device)
    return Plan(keys, indices, {"RESIDENT": resident, "BLOCK": block, "SURVIVORS": SURVIVORS, "num_warps": warps})


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@triton.jit
def load_logits(cond, uncond, index, inside, cfg_scale, temperature, GUIDED: tl.constexpr, TEMPERED: tl.constexpr):
    """Guided and tempered logits float32, -inf outside and 0 for -0, and which are NaN or +inf (they become -inf)."""
    z = tl.load(cond + index, mask=inside, other=-float("inf")).to(tl.float32)
    if GUIDED:
        u = tl.load(uncond + index, mask=inside, other=0.0).to(tl.float32)
        gap = z - u
        # torch.lerp: exact at scale 0 and 1.
        near = tl.abs(cfg_scale) < 0.5
        factor = tl.zeros(gap.shape, tl.float32) + tl.where(near, cfg_scale, cfg_scale - 1.0)
        z = tl.fma(gap, factor, tl.where(near, u, z))
    if TEMPERED:
        z = tl.div_rn(z, tl.zeros(z.shape, tl.float32) + temperature)
    fine = z < float("inf")
    # Zeros of both signs are one value, and must be one key.
    z = tl.where(inside & fine & (z != 0.0), z, tl.where(inside & (z == 0.0), 0.0, -float("inf")))
    return z, inside & (fine == 0)


@triton.jit
def key_of(z):
    bits = z.to(tl.uint32, bitcast=True)
    return tl.where(bits >> 31 != 0, bits ^ 0xFFFFFFFF, bits ^ 0x80000000)


@triton.jit
def value_of(key):
    return tl.where(key >> 31 != 0, key ^ 0x80000000, key ^ 0xFFFFFFFF).to(tl.float32, bitcast=True)


@triton.jit
def stays(key, index, threshold, limit):
    return (key > threshold) | ((key == threshold) & (index <= limit))


@triton.jit
def ties_wanted(top_p, total, above, each):
    """How many entries of mass `each` reach `top_p * total` together with the mass `above`."""
    return tl.ceil(tl.div_rn(top_p * total - above, each))


@triton.jit
def log_odds(part, whole):
    """log2 of `part` to the rest of `whole`, within sensible bounds: nearly linear in the pivot for usual rows."""
    share = tl.minimum(tl.maximum(part / whole, 1e-4), 0.9999)
    return tl.log2(share / (1.0 - share))


@triton.jit
def last_reaching(z, weight, maximum, target, WEIGHED: tl.constexpr):
    """The smallest entry of a row in registers above which the weight is less than `target`.

    `weight` is that of each entry, exp(z - maximum), or 1 without WEIGHED: the k-th largest entry for a target of k. A
    pivot is guessed between what is known from both sides, by interpolation of log-odds that halves the side which
    stays (Illinois), and by halving the keys at every sixth step, which bounds their number. Both ends are entries of
    the row, so the search is over when the next entry decides.
    """
    whole = tl.sum(weight, axis=0)
    goal = log_odds(target, whole)
    low = tl.full((), -float("inf"), tl.float32)  # the weight above it reaches the target
    next_of_low = low
    high = maximum  # the weight above it does not
    low_gap = tl.maximum(log_odds(whole, whole) - goal, 1e-6)
    high_gap = tl.minimum(log_odds(0.0, whole) - goal, -1e-6)
    reach = tl.full((), 24.0, tl.float32)
    side = tl.zeros((), tl.int32)
    step = tl.zeros((), tl.int32)
    searching = tl.where(high > low, 1, 0)
    while searching > 0:
        near = tl.maximum(low, high - reach)
        pivot = high - (high - near) * tl.minimum(tl.maximum(high_gap / (high_gap - low_gap), 0.01), 0.99)
        low_key = key_of(low)
        halved = value_of(low_key + ((key_of(high) - low_key) >> 1))
        pivot = tl.where((step % 6 < 5) & (pivot > low) & (pivot < high), pivot, halved)
        over = z > pivot
        heavier = tl.sum(tl.where(over, weight, 0.0), axis=0)
        after = tl.min(tl.where(over, z, float("inf")), axis=0)
        before = tl.max(tl.where(over, -float("inf"), z), axis=0)
        short = heavier < target
        if WEIGHED:
            decided = tl.where(
                short, heavier + tl.exp(before - maximum) >= target, heavier - tl.exp(after - maximum) < target
            )
        else:
            decided = tl.where(short, heavier + 1.0 >= target, heavier - 1.0 < target)
        gap = log_odds(heavier, whole) - goal
        if short:
            high = before
            high_gap = tl.minimum(gap, -1e-6)
            low_gap = tl.where(side < 0, 0.5 * low_gap, low_gap)
            reach = 2.0 * reach
            side = tl.full((), -1, tl.int32)
        else:
            low = pivot
            next_of_low = after
            low_gap = tl.maximum(gap, 1e-6)
            high_gap = tl.where(side > 0, 0.5 * high_gap, high_gap)
            high = tl.where(decided, after, high)
            side = tl.full((), 1, tl.int32)
        step += 1
        searching = tl.where(decided | (next_of_low == high) | (high <= low), 0, 1)
    return high


@triton.jit
def select(z, index, maximum, total, top_k, top_p, vocab, TOP_K: tl.constexpr, TOP_P: tl.constexpr):
    """Threshold, limit and mass (relative to `maximum`) of the entries that stay, for a row that lies in registers.

    `total` is the mass that top-p counts from when there is no top-k. What is no entry of the row is -inf.
    """
    threshold = tl.full((), -float("inf"), tl.float32)
    limit = tl.full((), EVERY_INDEX, tl.int32)
    if TOP_K:
        one = tl.full(z.shape, 1.0, tl.float32)
        threshold = last_reaching(z, one, maximum, tl.cast(top_k, tl.float32), False)
    mass = tl.where(z >= threshold, tl.exp(z - maximum), 0.0)
    whole = tl.sum(mass, axis=0)
    if TOP_P:
        if TOP_K:
            total = whole
        threshold = last_reaching(z, mass, maximum, top_p * total, True)
        above = tl.sum(tl.where(z > threshold, mass, 0.0), axis=0)
        ties = tl.sum(tl.where(z == threshold, 1.0, 0.0), axis=0)
        wanted = tl.maximum(ties_wanted(top_p, total, above, tl.exp(threshold - maximum)), 1.0)
        if wanted < ties:
            first = tl.full((), -1, tl.int32)
            limit = vocab - 1
            while limit - first > 1:
                centre = (first + limit) // 2
                enough = tl.sum(tl.where((z == threshold) & (index <= centre), 1.0, 0.0), axis=0) >= wanted
                limit = tl.where(enough, centre, limit)
                first = tl.where(enough, first, centre)
        whole = tl.sum(tl.where(stays(z, index, threshold, limit), mass, 0.0), axis=0)
    return threshold, limit, whole


@triton.jit
def survey(
    cond,
    uncond,
    vocab,
    cfg_scale,
    temperature,
    GUIDED: tl.constexpr,
    TEMPERED: tl.constexpr,
    FILTERED: tl.constexpr,
    TILE: tl.constexpr,
):
    """One read of a long row: maximum, mass relative to it, whether an entry is bad, and counts by leading bits."""
    maximum = tl.full((), -float("inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    bad = tl.zeros((), tl.int32)
    histogram = tl.zeros((BINS,), tl.int32)
    for begin in range(0, vocab, TILE):
        index = begin + tl.arange(0, TILE)
        z, wrong = load_logits(cond, uncond, index, index < vocab, cfg_scale, temperature, GUIDED, TEMPERED)
        bad = tl.maximum(bad, tl.max(wrong.to(tl.int32), axis=0))
        higher = tl.maximum(maximum, tl.max(z, axis=0))
        base = tl.where(higher == -float("inf"), 0.0, higher)
        total = total * tl.exp(maximum - base) + tl.sum(tl.exp(z - base), axis=0)
        maximum = higher
        if FILTERED:
            # What lies outside of the row goes to a bin below that of -inf.
            bin = tl.where(index < vocab, (key_of(z) >> BIN_SHIFT).to(tl.int32), 0)
            histogram += tl.histogram(bin, BINS)
    return maximum, total, bad, histogram


@triton.jit
def lowest_survivor(histogram, maximum, total, top_k, top_p, TOP_K: tl.constexpr):
    """A key below which nothing can stay, and how many entries are not below it."""
    bin = tl.arange(0, BINS)
    if TOP_K:
        reached = tl.cumsum(histogram, axis=0, reverse=True) >= top_k
    else:
        edge = value_of(bin.to(tl.uint32) << BIN_SHIFT)
        bound = tl.where(histogram > 0, histogram.to(tl.float32) * tl.exp(edge - maximum), 0.0)
        reached = tl.cumsum(bound, axis=0, reverse=True) >= top_p * total * MARGIN
    lowest = tl.max(tl.where(reached, bin, 0), axis=0)
    count = tl.sum(tl.where(bin >= lowest, histogram, 0), axis=0)
    return tl.maximum(lowest.to(tl.uint32) << BIN_SHIFT, tl.full((), MINUS_INF_KEY, tl.uint32)), count


@triton.jit
def gather_survivors(
    cond,
    uncond,
    keys,
    indices,
    floor,
    vocab,
    cfg_scale,
    temperature,
    GUIDED: tl.constexpr,
    TEMPERED: tl.constexpr,
    TILE: tl.constexpr,
    SURVIVORS: tl.constexpr,
):
    """The second read of a long row: entries not below `floor`, in their order, by way of two scratch rows."""
    filled = tl.zeros((), tl.int32)
    for begin in range(0, vocab, TILE):
        index = begin + tl.arange(0, TILE)
        z, _ = load_logits(cond, uncond, index, index < vocab, cfg_scale, temperature, GUIDED, TEMPERED)
        key = key_of(z)
        take = (key >= floor) & (index < vocab)
        rank = filled + tl.cumsum(take.to(tl.int32), axis=0) - 1
        tl.store(keys + rank, key.to(tl.int32, bitcast=True), mask=take)
        tl.store(indices + rank, index, mask=take)
        filled += tl.sum(take.to(tl.int32), axis=0)
    tl.debug_barrier()  # the threads of this program read what others of it wrote
    slot = tl.arange(0, SURVIVORS)
    key = tl.load(keys + slot, mask=slot < filled, other=MINUS_INF_KEY).to(tl.uint32, bitcast=True)
    index = tl.load(indices + slot, mask=slot < filled, other=EVERY_INDEX)
    return key, index


@triton.jit
def measure(
    cond,
    uncond,
    at,
    floor,
    limit,
    maximum,
    vocab,
    cfg_scale,
    temperature,
    GUIDED: tl.constexpr,
    TEMPERED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Of a long row: the count of keys >= `at`, that of keys equal to it up to index `limit`, the mass above it, and
    the mass that stays with threshold `at` and that limit; keys below `floor` have no mass."""
    count = tl.zeros((TILE,), tl.int32)
    ties = tl.zeros((TILE,), tl.int32)
    above = tl.zeros((TILE,), tl.float32)
    kept = tl.zeros((TILE,), tl.float32)
    for begin in range(0, vocab, TILE):
        index = begin + tl.arange(0, TILE)
        z, _ = load_logits(cond, uncond, index, index < vocab, cfg_scale, temperature, GUIDED, TEMPERED)
        key = tl.where(index < vocab, key_of(z), 0)
        mass = tl.where(key >= floor, tl.exp(z - maximum), 0.0)
        count += (key >= at).to(tl.int32)
        ties += ((key == at) & (index <= limit)).to(tl.int32)
        above += tl.where(key > at, mass, 0.0)
        kept += tl.where(stays(key, index, at, limit), mass, 0.0)
    return tl.sum(count, axis=0), tl.sum(ties, axis=0), tl.sum(above, axis=0), tl.sum(kept, axis=0)


@triton.jit
def select_by_reading(
    cond,
    uncond,
    maximum,
    total,
    vocab,
    cfg_scale,
    temperature,
    top_k,
    top_p,
    GUIDED: tl.constexpr,
    TEMPERED: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    TILE: tl.constexpr,
):
    """`select` for a long row with too many survivors: every step of the bisections reads the row again."""
    highest = key_of(maximum)
    floor = tl.full((), MINUS_INF_KEY, tl.uint32)
    low = floor
    limit = tl.full((), EVERY_INDEX, tl.int32)
    if TOP_K:
        high = highest + 1
        while high - low > 1:
            middle = low + ((high - low) >> 1)
            count, _, _, _ = measure(
                cond, uncond, middle, floor, limit, maximum, vocab, cfg_scale, temperature, GUIDED, TEMPERED, TILE
            )
            low = tl.where(count >= top_k, middle, low)
            high = tl.where(count > top_k, high, tl.where(count == top_k, middle + 1, middle))
    threshold = low
    if TOP_P:
        floor = threshold
        if TOP_K:
            _, _, _, total = measure(
                cond, uncond, threshold, floor, limit, maximum, vocab, cfg_scale, temperature, GUIDED, TEMPERED, TILE
            )
        low = threshold - 1
        high = highest
        above = tl.zeros((), tl.float32)
        while high - low > 1:
            middle = low + ((high - low) >> 1)
            _, _, heavier, _ = measure(
                cond, uncond, middle, floor, limit, maximum, vocab, cfg_scale, temperature, GUIDED, TEMPERED, TILE
            )
            short = heavier < top_p * total
            above = tl.where(short, heavier, above)
            high = tl.where(short, middle, high)
            low = tl.where(short, low, middle)
        threshold = high
        _, ties, _, _ = measure(
            cond, uncond, threshold, floor, limit, maximum, vocab, cfg_scale, temperature, GUIDED, TEMPERED, TILE
        )
        wanted = ties_wanted(top_p, total, above, tl.exp(value_of(threshold) - maximum))
        if wanted < ties:
            first = tl.full((), -1, tl.int32)
            limit = vocab - 1
            while limit - first > 1:
                centre = (first + limit) // 2
                _, ties, _, _ = measure(
                    cond,
                    uncond,
                    threshold,
                    floor,
                    centre,
                    maximum,
                    vocab,
                    cfg_scale,
                    temperature,
                    GUIDED,
                    TEMPERED,
                    TILE,
                )
                limit = tl.where(ties >= wanted, centre, limit)
                first = tl.where(ties >= wanted, first, centre)
    _, _, _, whole = measure(
        cond, uncond, threshold, floor, limit, maximum, vocab, cfg_scale, temperature, GUIDED, TEMPERED, TILE
    )
    return threshold, limit, whole
