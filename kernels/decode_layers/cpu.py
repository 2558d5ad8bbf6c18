"""Host backend of `decode_layers`: one call a step, whose threads share every layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import host
from ..host import unusable
from .call import Call, Layer, Stack

__all__ = ["decline", "decline_stack", "run", "unusable"]


def decline(call: Call) -> str | None:
    """Why the kernel cannot serve these arguments, or None."""
    tokens = call.slots.numel()
    if not 1 <= tokens <= host.MOST_ROWS:
        return f"1 to {host.MOST_ROWS} tokens are served, got {tokens}"
    if call.x.dtype not in (torch.float32, torch.bfloat16):
        return f"x must be float32 or bfloat16, got {call.x.dtype}"
    if not (call.x.is_cpu and call.slots.is_cpu and (call.valid is None or call.valid.is_cpu)):
        return "arguments must lie on the CPU"
    if torch.is_grad_enabled() and call.x.requires_grad:
        return "there is no backward pass"
    return decline_stack(call.stack)


def decline_stack(stack: Stack) -> str | None:
    """Why the kernel cannot read these layers, or None; looked at once a stack."""
    kept = stack.prepared
    if "declined" not in kept:
        kept["declined"] = _decline_stack(stack)
    found: str | None = kept["declined"]
    return found


def _decline_stack(stack: Stack) -> str | None:
    first = stack.layers[0]
    for layer in stack.layers:
        for weight in layer.weights():
            reason = host.decline_weight(weight.weight, weight.scale)
            if reason is not None:
                return reason
        for cache in (layer.k_cache, layer.v_cache):
            if cache.dtype not in (torch.float32, torch.bfloat16) or cache.dtype != first.k_cache.dtype:
                return f"caches must all be float32 or all bfloat16, got {cache.dtype}"
            if not cache.is_cpu or not cache.is_contiguous() or cache.shape != first.k_cache.shape:
                return "caches must be contiguous, on the CPU and of one shape"
        if (layer.q_norm is None) != (layer.k_norm is None):
            return "queries and keys must both be normalised, or neither"
        if (layer.attention_out_norm is None) != (layer.ffn_out_norm is None):
            return "what is added to the residual stream must be normalised twice a layer, or never"
    rotary = stack.rotary
    if rotary is not None and (rotary.dtype != torch.float32 or not rotary.is_contiguous() or not rotary.is_cpu):
        return f"rotary must be contiguous, float32 and on the CPU, got {rotary.dtype} on {rotary.device}"
    return host.decline_columns(first.k_cache.shape[3])


def run(call: Call) -> Tensor:
    """The residual stream behind the last layer; float32 inside, rounded once to the type of x."""
    x, stack, slots, valid, kv_len, first_row = call
    kept = stack.prepared.get("native")
    if kept is None:
        kept = stack.prepared["native"] = _prepared(stack)
    out = x.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    slots = slots.contiguous()
    if valid is not None and valid.stride(1) != 1:
        valid = valid.contiguous()
    kept[0].run(
        out.data_ptr(),
        (first_row, *slots.shape, 0 if valid is None else valid.stride(0), kv_len),
        slots.data_ptr(),
        0 if valid is None else valid.data_ptr(),
        host.threads(),
    )
    return out if x.dtype == torch.float32 else out.to(x.dtype)


def _prepared(stack: Stack) -> tuple[Any, list[Tensor]]:
    """The native stack, and the tensors that were made for it, which must live as long."""
    made: list[Tensor] = []

    def exact(t: Tensor | None) -> Tensor | None:
        if t is None:
            return None
        made.append(t.detach().float().contiguous())
        return made[-1]

    def address(t: Tensor | None) -> int:
        return 0 if t is None else t.data_ptr()

    def layer_args(layer: Layer) -> tuple[list[int], list[host.LinearArgs]]:
        before = (layer.attention_norm, layer.ffn_norm, layer.q_norm, layer.k_norm)
        norms = [address(exact(t)) for t in (*before, layer.attention_out_norm, layer.ffn_out_norm)]
        linears = [host.linear_args(w.weight, exact(w.scale), exact(w.bias)) for w in layer.weights()]
        return [*norms, layer.k_cache.data_ptr(), layer.v_cache.data_ptr()], linears

    first = stack.layers[0]
    cache = first.k_cache
    native = host.module().Stack(
        [layer_args(layer) for layer in stack.layers],
        [
            stack.heads,
            cache.shape[2],
            cache.shape[3],
            first.wqkv.weight.shape[1],
            first.w2.weight.shape[1],
            cache.shape[1],
            host.TYPES[cache.dtype],
        ],
        stack.eps,
        cache.shape[3] ** -0.5,
        address(stack.rotary),
        host.isa(),
    )
    return native, made
