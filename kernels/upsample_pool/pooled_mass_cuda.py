"""CUDA backend of `pooled_mass`: one block a row, one read of the logits."""

from __future__ import annotations

import torch

from .. import native
from ..native import unusable
from .call import PooledCall
from .reference import PooledMass

__all__ = ["decline", "run", "unusable"]


def decline(call: PooledCall) -> str | None:
    """Why the kernel cannot serve these arguments, or None."""
    cond, uncond, tokens, neighbours = call.cond, call.uncond, call.tokens, call.neighbours
    for name, tensor in (("tokens", tokens), ("neighbours", neighbours)):
        if tensor.device != cond.device:
            return f"{name} must be on the device of the logits ({cond.device}), got {tensor.device}"
    if neighbours.dtype != torch.int32 or tokens.dtype != torch.int64:
        return f"neighbours must be int32 and tokens int64, got {neighbours.dtype} and {tokens.dtype}"
    return native.decline_logits(cond, uncond)


def run(call: PooledCall) -> PooledMass:
    """Mass and decision; launched on the current stream."""
    cond, uncond, tokens, neighbours, tau, cfg_scale, temperature, top_k, top_p = call
    cond = native.rows_in_order(cond)
    uncond = None if uncond is None else native.rows_in_order(uncond)
    tokens, neighbours = tokens.contiguous(), neighbours.contiguous()
    mass = torch.empty(cond.shape[0], dtype=torch.float32, device=cond.device)
    accept = torch.empty(cond.shape[0], dtype=torch.bool, device=cond.device)
    with torch.cuda.device(cond.device):
        native.module().pooled_mass(
            native.logit_args(cond, uncond, cfg_scale, temperature, top_k, top_p),
            tokens.data_ptr(),
            neighbours.data_ptr(),
            neighbours.shape[1],
            tau,
            mass.data_ptr(),
            accept.data_ptr(),
            native.stream(cond),
        )
    return PooledMass(mass, accept)
