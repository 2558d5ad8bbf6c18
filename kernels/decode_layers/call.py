"""The arguments of one call of `decode_layers`: layers with their cache, which stay, and the tokens of a step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from torch import Tensor


class Weight(NamedTuple):
    """A linear layer: [N, K] of float32 or bfloat16, or int8 with a float32 scale [N]; bias [N] or None."""

    weight: Tensor
    scale: Tensor | None = None
    bias: Tensor | None = None


@dataclass(frozen=True)
class Layer:
    """One pre-norm block and its keys and values.

    Attributes:
        wqkv: dim to (H + 2 Hkv) * D: queries, then keys, then values.
        wo: H * D to dim.
        w13: dim to 2 * ffn, gates before values.
        w2: ffn to dim.
        attention_norm, ffn_norm: weights [dim] of the RMSNorms.
        k_cache, v_cache: [rows, slots, Hkv, D].
        q_norm, k_norm: weights [D] of RMSNorms of each head before it is rotated, or None.
        attention_out_norm, ffn_out_norm: weights [dim] of RMSNorms of what attention and the feed-forward network add
            to the residual stream, or None.
    """

    wqkv: Weight
    wo: Weight
    w13: Weight
    w2: Weight
    attention_norm: Tensor
    ffn_norm: Tensor
    k_cache: Tensor
    v_cache: Tensor
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    attention_out_norm: Tensor | None = None
    ffn_out_norm: Tensor | None = None

    def weights(self) -> tuple[Weight, Weight, Weight, Weight]:
        return self.wqkv, self.wo, self.w13, self.w2


@dataclass(frozen=True)
class Stack:
    """The layers of a model over one KV cache.

    Attributes:
        layers: of equal sizes and types.
        heads: of the queries.
        eps: of the norms.
        rotary: float32 [slots, D/2, 2] (cos, sin), or None for no rotation.
    """

    layers: tuple[Layer, ...]
    heads: int
    eps: float
    rotary: Tensor | None = None

    @cached_property
    def prepared(self) -> dict[str, Any]:
        """What a backend keeps with the layers, by its name."""
        return {}


class Call(NamedTuple):
    """The arguments of the reference, in its order; for their meaning see `decode_layers`."""

    x: Tensor
    stack: Stack
    slots: Tensor
    valid: Tensor | None
    kv_len: int
    first_row: int = 0
