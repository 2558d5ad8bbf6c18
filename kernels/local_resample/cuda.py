"""CUDA backend of `local_resample`: one block a row, one read of the logits."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native
from ..native import unusable
from .call import Call

__all__ = ["decline", "run", "unusable"]


def decline(call: Call) -> str | None:
    """Why the kernel cannot serve these arguments, or None."""
    cond, uncond, gumbel, seed, position = call.cond, call.uncond, call.gumbel, call.seed, call.position
    for name, tensor in (("gumbel", gumbel), ("seed", seed), ("position", position)):
        if tensor is not None and tensor.device != cond.device:
            return f"{name} must be on the device of the logits ({cond.device}), got {tensor.device}"
    if gumbel is not None and gumbel.dtype != torch.float32:
        return f"gumbel must be float32, got {gumbel.dtype}"
    return native.decline_logits(cond, uncond)


def run(call: Call) -> Tensor:
    """Tokens int64 [R], -1 for rows without a finite maximum; launched on the current stream."""
    cond, uncond, gumbel, cfg_scale, temperature, top_k, top_p, seed, position, purpose = call
    cond = native.rows_in_order(cond)
    uncond = None if uncond is None else native.rows_in_order(uncond)
    # Named, so that copies made here live until the launch is enqueued.
    noise, seeds, positions = (None if t is None else t.contiguous() for t in (gumbel, seed, position))
    token = torch.empty(cond.shape[0], dtype=torch.int64, device=cond.device)
    with torch.cuda.device(cond.device):
        native.module().local_resample(
            native.logit_args(cond, uncond, cfg_scale, temperature, top_k, top_p),
            0 if noise is None else noise.data_ptr(),
            0 if seeds is None else seeds.data_ptr(),
            0 if positions is None else positions.data_ptr(),
            purpose,
            token.data_ptr(),
            native.stream(cond),
        )
    return token
