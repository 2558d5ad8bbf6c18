"""Sampling of tokens at chosen positions: Gumbel-max on the processed logits."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import philox
from ..registry import Op
from ..sampling import check_logits, check_sampling
from .call import Call
from .reference import local_resample_reference

# Called with a `Call`, it skips the checks of the function below.
OP = Op(
    "local_resample",
    Call,
    local_resample_reference,
    schema="(Tensor cond, Tensor? uncond, Tensor? gumbel, float cfg_scale, float temperature, int top_k, float top_p, "
    "Tensor? seed, Tensor? position, int purpose, str? backend=None) -> Tensor",
    fake=lambda cond, *_, **__: cond.new_empty(cond.shape[:1], dtype=torch.int64),
    modules={"cuda": f"{__name__}.cuda", "triton": f"{__name__}.triton"},
)


def local_resample(
    cond: Tensor,
    uncond: Tensor | None = None,
    gumbel: Tensor | None = None,
    *,
    cfg_scale: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: Tensor | None = None,
    position: Tensor | None = None,
    purpose: int = philox.Purpose.TARGET,
    backend: str | None = None,
) -> Tensor:
    """Sample one token a row from the processed distribution (guidance, temperature, top-k, top-p).

    The token is `argmax(processed + gumbel)`, the first one at ties; that is an exact sample, and the same noise gives
    the same token whatever the batch (Gumbel-max trick).

    Args:
        cond: float [R, V], logits under the condition.
        uncond: like `cond`, or None for no guidance.
        gumbel: float32 [R, V], the noise (`philox.gumbel`; worth keeping between calls), or None to draw it here.
        cfg_scale, temperature, top_k, top_p: see `sampling.processed_logits`.
        seed, position: int64 [R], needed when `gumbel` is None and `temperature` > 0.
        purpose: the `philox.Purpose` of the draw made here.
        backend: force "cuda", "triton" or "torch".

    Returns:
        int64 [R]. On a GPU no backend waits for the device: there a row that the CPU raises for gives -1.

    Raises:
        ValueError: an argument is wrong, or a row holds NaN or +inf, or nothing but -inf (the row is named).
        BackendUnavailable: the forced backend cannot serve the call.
    """
    check_logits(cond, uncond)
    check_sampling(cfg_scale, temperature, top_k, top_p)
    if gumbel is not None:
        if gumbel.shape != cond.shape:
            raise ValueError(f"gumbel must be [R, V] = {list(cond.shape)}, got {list(gumbel.shape)}")
    elif temperature > 0.0:
        if seed is None or position is None:
            raise ValueError("pass either gumbel or both seed and position")
        if seed.shape != (cond.shape[0],) or position.shape != seed.shape:
            raise ValueError(
                f"seed and position must be [R] = [{cond.shape[0]}], got {list(seed.shape)}, {list(position.shape)}"
            )
    call = Call(cond, uncond, gumbel, cfg_scale, temperature, top_k, top_p, seed, position, int(purpose))
    return OP(call, backend)
