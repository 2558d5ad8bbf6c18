"""The specification of `decode_layers`: the ops that it is made of, one after the other."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..fused_linear.reference import fused_linear_reference
from ..kv_write.reference import kv_write_reference
from ..verify_attention.reference import verify_attention_reference
from .call import Stack, Weight


def decode_layers_reference(
    x: Tensor, stack: Stack, slots: Tensor, valid: Tensor | None, kv_len: int, first_row: int
) -> Tensor:
    """The residual stream [rows, Q, dim] behind the last layer; arguments are those of `decode_layers`."""
    rows, queries = slots.shape
    eps = stack.eps
    for layer in stack.layers:
        dim = layer.k_cache.shape[3]
        k_cache, v_cache = (c[first_row : first_row + rows] for c in (layer.k_cache, layer.v_cache))
        fused = fused_linear_reference(x, *layer.wqkv, layer.attention_norm, eps, False, None)
        parts = (stack.heads, k_cache.shape[2], k_cache.shape[2])
        q, k, v = fused.view(rows, queries, -1, dim).split(parts, dim=2)
        if layer.q_norm is not None and layer.k_norm is not None:
            q = F.rms_norm(q, (dim,), layer.q_norm.to(q.dtype), eps)
            k = F.rms_norm(k, (dim,), layer.k_norm.to(k.dtype), eps)
        q, k, v = (t.to(k_cache.dtype) for t in (q, k, v))
        q = kv_write_reference(q, k, v, slots, stack.rotary, k_cache, v_cache, None, None)
        attended, _ = verify_attention_reference(
            q, k_cache, v_cache, slots, valid, kv_len, None, None, None, None, False, None, None
        )
        x = added(x, attended.to(x.dtype).flatten(-2), layer.wo, layer.attention_out_norm, eps)
        inner = fused_linear_reference(x, *layer.w13, layer.ffn_norm, eps, True, None)
        x = added(x, inner, layer.w2, layer.ffn_out_norm, eps)
    return x


def added(x: Tensor, inner: Tensor, weight: Weight, norm: Tensor | None, eps: float) -> Tensor:
    """The residual stream with the product of a layer on top, normalised where there is a norm of it."""
    if norm is None:
        return fused_linear_reference(inner, *weight, None, eps, False, x)
    out = fused_linear_reference(inner, *weight, None, eps, False, None)
    return x + F.rms_norm(out, (out.shape[-1],), norm.to(out.dtype), eps)
