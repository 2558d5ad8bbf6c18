"""Philox4x32-10 and its Gumbel noise for Triton kernels, in the counter layout of `philox`."""

from __future__ import annotations

import triton
import triton.language as tl

MULTIPLIER_0 = tl.constexpr(0xD2511F53)
MULTIPLIER_1 = tl.constexpr(0xCD9E8D57)
WEYL_0 = tl.constexpr(0x9E3779B9)
WEYL_1 = tl.constexpr(0xBB67AE85)
ROUNDS = tl.constexpr(10)
# The cubic of `rough_log2`, and a bound of the error of `rough_gumbel` over all words.
CUBIC_0 = tl.constexpr(0.42286537)
CUBIC_1 = tl.constexpr(-0.15922019)
ROUGH = tl.constexpr(0.01)


@triton.jit
def philox4x32(key_low, key_high, c0, c1, c2, c3):
    """The four output words, uint32, of counters (c0, c1, c2, c3); all arguments are uint32 of one shape."""
    for _ in tl.static_range(ROUNDS):
        low_0 = c0 * MULTIPLIER_0
        low_1 = c2 * MULTIPLIER_1
        high_0 = tl.umulhi(c0, tl.full(c0.shape, MULTIPLIER_0, tl.uint32))
        high_1 = tl.umulhi(c2, tl.full(c2.shape, MULTIPLIER_1, tl.uint32))
        c0 = high_1 ^ c1 ^ key_low
        c2 = high_0 ^ c3 ^ key_high
        c1 = low_1
        c3 = low_0
        key_low = key_low + WEYL_0
        key_high = key_high + WEYL_1
    return c0, c1, c2, c3


@triton.jit
def words_of_quads(seed, position, purpose, quad):
    """The words of the vocabulary entries 4 * quad, 4 * quad + 1, ...: four tensors of the shape of `quad`."""
    none = tl.zeros(quad.shape, tl.uint32)
    return philox4x32(
        none + seed.to(tl.uint32),
        none + (seed >> 32).to(tl.uint32),
        quad.to(tl.uint32),
        none + position.to(tl.uint32),
        none + purpose.to(tl.uint32),
        none,
    )


@triton.jit
def row_words(seed, position, purpose, first, BLOCK: tl.constexpr):
    """The words of the entries first, first + 1, ... first + BLOCK - 1; `first` is a multiple of four.

    One cipher call serves four neighbours.
    """
    x, y, z, w = words_of_quads(seed, position, purpose, first // 4 + tl.arange(0, BLOCK // 4))
    return tl.interleave(tl.interleave(x, z), tl.interleave(y, w))


@triton.jit
def entry_words(seed, position, purpose, index):
    """The words of arbitrary vocabulary entries: one cipher call each."""
    x, y, z, w = words_of_quads(seed, position, purpose, index // 4)
    lane = index % 4
    return tl.where(lane < 2, tl.where(lane == 0, x, y), tl.where(lane == 2, z, w))


@triton.jit
def open_uniform(word):
    """Uniform in (0, 1): 23 bits and a half, exact in float32."""
    return ((word >> 9).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-07


@triton.jit
def gumbel(word):
    """Standard Gumbel noise of one word."""
    return -tl.log(-tl.log(open_uniform(word)))


@triton.jit
def rough_log2(x):
    """log2 of a positive normal number by its exponent and a cubic of its mantissa, off by less than 0.001.

    The cubic is exact at both ends, so the relative error stays small towards 1.
    """
    bits = x.to(tl.int32, bitcast=True)
    m = ((bits & 0x007FFFFF) | 0x3F800000).to(tl.float32, bitcast=True) - 1.0
    return ((bits >> 23) - 127).to(tl.float32) + m * (1.0 + (1.0 - m) * (CUBIC_0 + m * CUBIC_1))


@triton.jit
def rough_gumbel(word):
    """`gumbel` by rough logarithms, off by less than ROUGH; near a uniform of 1, by a series."""
    u = open_uniform(word)
    rest = 1.0 - u
    series = rest + rest * rest * (0.5 + 0.33333334 * rest)
    waited = tl.where(rest < 0.0625, series, -0.6931471805599453 * rough_log2(u))
    return -0.6931471805599453 * rough_log2(waited)
