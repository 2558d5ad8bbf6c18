"""Bytes that steps of fixed shapes hold beside the cache: their buffers, what they return, and what they work in.

An estimate from shapes, made before anything is allocated. The graphs of a cache share one pool of memory and never run
at the same time: what they return is each one's own, what they work in is that of the largest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from .graph_key import Drawing, Key, bucket, key_buckets
from .models.eagle import EagleDrafter, Model
from .sampling import SamplingParams

# Tensors as wide as the residual stream that are alive at a time in a layer: the stream, the normed one, queries, keys,
# values, what was attended.
STREAMS = 6
# Float32 logits that are alive at a time while a token is sampled.
LOGITS = 2


class StepBytes(NamedTuple):
    """Bytes of one step: `held` as long as it lives, `working` only while it runs."""

    held: int
    working: int


def step_bytes(model: Model, slots: int, key: Key, size: int | None = None) -> StepBytes:
    """Bytes of a step of a model whose cache has so many slots a row; the model may be on the meta device.

    Args:
        size: bytes of a number in the type that the model will have; None is the one that it has.
    """
    target = model.target if isinstance(model, EagleDrafter) else model
    c, size, rows = target.config, size or target.dtype.itemsize, key.rows
    tokens = rows * key.width
    told = 8 * (5 * tokens + 4 * rows)
    tree = 4 * tokens * -(-key.width // 32) + 8 * slots if key.tree else 0
    features = tokens * c.dim * size if isinstance(model, EagleDrafter) else 0
    returned = (4 * tokens * c.vocab_size if key.logits else 0) + (tokens * c.dim * size if key.keep else 0)
    layer = tokens * size * (STREAMS * c.dim + 3 * model.config.ffn_dim)
    sampled = LOGITS * 4 * tokens * c.vocab_size if key.drawing is not None else 0
    masked, committed = rows * slots * key.masked, rows * slots * key.tree
    return StepBytes(told + masked + tree + features + returned, layer + sampled + committed)


def total_bytes(steps: Iterable[StepBytes]) -> int:
    """Bytes of steps that share a pool."""
    each = list(steps)
    return sum(step.held for step in each) + max((step.working for step in each), default=0)


def decoding_bytes(model: Model, slots: int, requests: int, size: int | None = None) -> int:
    """Bytes of the steps of one token that so many guided requests take, for one way to sample."""
    drawing = Drawing(SamplingParams(), 0)
    rows = [1 << i for i in range(1, bucket(2 * requests).bit_length())]
    keys = [Key(n, 1, read, False, False, drawing) for n in rows for read in key_buckets(slots)]
    return total_bytes(step_bytes(model, slots, key, size) for key in keys)
