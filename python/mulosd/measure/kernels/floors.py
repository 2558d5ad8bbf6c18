"""The least time that a device needs for an op: bytes, products and exponentials against its limits.

`B` sequences (a guided pair is two), `H` heads, `Hkv` key heads, `D` their dimension, `Q` draft tokens, `L` keys, `e`
bytes an element, `R` rows of logits, `V` vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """What an op cannot avoid: bytes moved to and from memory, floating-point operations, exponentials."""

    bytes: float
    flops: float = 0.0
    exps: float = 0.0


@dataclass(frozen=True)
class Limits:
    """What a device can do a second.

    Args:
        bandwidth: bytes, as a GPU's data sheet says, or as they were read by a CPU.
        half_flops: operations of dense 16-bit matrix products, as measured in large ones.
        float_flops: of float32, outside of a GPU's tensor cores as its data sheet says.
        exps: exponentials, 16 a clock and multiprocessor.
    """

    bandwidth: float
    half_flops: float
    float_flops: float
    exps: float


DEVICES = {
    "H200": Limits(4.8e12, 790e12, 67e12, 3.9e12),
    "H100": Limits(3.35e12, 790e12, 67e12, 3.9e12),
}


def limits_of(name: str) -> Limits | None:
    """The limits of a device by the name that torch gives it, or None where they are not known."""
    return next((limits for key, limits in DEVICES.items() if key in name), None)


def floor_us(work: Work, limits: Limits | None, itemsize: int) -> float | None:
    """Microseconds that the tightest of the limits allows, or None for an unknown device."""
    if limits is None:
        return None
    flops = limits.half_flops if itemsize <= 2 else limits.float_flops
    return 1e6 * max(work.bytes / limits.bandwidth, work.flops / flops, work.exps / limits.exps)


def attention(B: int, H: int, Hkv: int, D: int, Q: int, L: int, e: int) -> Work:
    """Keys and values once, queries and outputs once, one bit a pair of draft tokens; two products; one exp a score."""
    return Work(
        bytes=2 * B * Hkv * L * D * e + 2 * B * H * Q * D * e + B * Q * -(-Q // 32) * 4,
        flops=4 * B * H * Q * L * D,
        exps=B * H * Q * L,
    )


def split_bytes(B: int, H: int, D: int, Q: int, splits: int) -> int:
    """What splitting the keys costs on top: float32 partial outputs and their log-sum-exp, written and read."""
    return 2 * splits * B * H * Q * (D + 1) * 4


def kv_write(B: int, Q: int, H: int, Hkv: int, D: int, e: int, cache_e: int, rotary: bool = True) -> Work:
    """Queries, keys and values read once and written once; the table and the slots read once."""
    moved = B * Q * D * ((2 * H if rotary else 0) * e + 2 * Hkv * (e + cache_e))
    return Work(
        bytes=moved + (Q * D * 4 if rotary else 0) + B * Q * 8, flops=3 * B * Q * (H + Hkv) * D if rotary else 0
    )


def fused_linear(R: int, K: int, N: int, e: int, weight_e: int, gated: bool) -> Work:
    """Weights and their scales once; R tokens in, as many residuals and results."""
    width = N // 2 if gated else N
    scales = 4 * N if weight_e < 2 else 0
    return Work(bytes=N * K * weight_e + scales + R * (K + 2 * width) * e, flops=2 * R * N * K)


def sample(R: int, V: int, e: int, guided: bool, noise: bool) -> Work:
    """One read of the logits, two of guided ones, and of the float32 noise where it is given; one token a row."""
    return Work(bytes=R * V * (e * (2 if guided else 1) + (4 if noise else 0)) + R * 8)


def pooled_mass(R: int, V: int, k: int, e: int, guided: bool) -> Work:
    """One read of the logits, k int32 neighbours a row, an exponential an entry."""
    return Work(bytes=R * V * e * (2 if guided else 1) + R * k * 4 + R * 13, exps=R * V)


def nearest_code(N: int, V: int, d: int, e: int) -> Work:
    """Features and codebook once, one index a feature; a product of N x V x d."""
    return Work(bytes=(N + V) * d * e + N * 8, flops=2 * N * V * d)


def expand_islands(images: int, H: int, W: int) -> Work:
    """A byte in; a byte and two int32 out, for every cell."""
    return Work(bytes=images * H * W * 10)


def forward(
    layers: int, dim: int, H: int, D: int, ffn: int, V: int, B: int, Q: int, L: int, logits: int, e: int
) -> Work:
    """One forward of a transformer: weights once, keys and values of L slots once a sequence.

    Args:
        B: sequences.
        Q: tokens fed a sequence.
        logits: rows of the output head, all sequences together; with none its weights are not read.
    """
    blocks = layers * (4 * dim * H * D + 3 * dim * ffn)
    head = V * dim if logits else 0
    return Work(
        bytes=(blocks + head) * e + 2 * layers * B * H * L * D * e,
        flops=2 * B * Q * blocks + 2 * logits * V * dim + layers * 4 * B * H * Q * L * D,
        exps=layers * B * H * Q * L,
    )
