"""The two halves of verification around the codebook: nearest codes of up-sampled features, and pooled probability."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from ..registry import Op
from ..sampling import check_logits, check_sampling
from .call import NearestCall, PooledCall
from .cells import Cells
from .reference import PooledMass, nearest_code_reference, neighbours_reference, pooled_mass_reference

__all__ = ["PooledMass", "nearest_code", "neighbours", "pooled_mass", "shuffle_nearest"]

_NEAREST = Op(
    "nearest_code",
    NearestCall,
    nearest_code_reference,
    schema="(Tensor features, Tensor codebook, int r, Tensor? neighbours, str? backend=None) -> (Tensor, Tensor)",
    fake=lambda features, codebook, r, neighbours, **__: Cells(features, r).outputs(neighbours),
    modules={"cuda": f"{__name__}.nearest_code_cuda", "triton": f"{__name__}.nearest_code_triton"},
)
_POOLED = Op(
    "pooled_mass",
    PooledCall,
    pooled_mass_reference,
    schema="(Tensor cond, Tensor? uncond, Tensor tokens, Tensor neighbours, float tau, float cfg_scale, "
    "float temperature, int top_k, float top_p, str? backend=None) -> (Tensor, Tensor)",
    fake=lambda cond, *_, **__: (
        cond.new_empty(cond.shape[:1], dtype=torch.float32),
        cond.new_empty(cond.shape[:1], dtype=torch.bool),
    ),
    modules={"cuda": f"{__name__}.pooled_mass_cuda", "triton": f"{__name__}.pooled_mass_triton"},
)


def _check_codebook(codebook: Tensor) -> None:
    if codebook.dim() != 2 or not codebook.is_floating_point() or codebook.shape[0] < 1:
        raise ValueError(f"codebook must be floating point [V, d], got {codebook.dtype} {list(codebook.shape)}")


def nearest_code(features: Tensor, codebook: Tensor, *, backend: str | None = None) -> Tensor:
    """Index of the codebook row with the largest cosine to each feature.

    The N x V similarities are made in chunks and never stored whole.

    Args:
        features: float [..., d], any length (they are normalised here).
        codebook: float [V, d], rows of unit length.
        backend: force "cuda", "triton" or "torch".

    Returns:
        int64 [...], the lower index where similarities are equal. The CUDA and Triton backends do not wait for the
        device: there a feature that is NaN or infinite gives -1.

    Raises:
        ValueError: shapes do not fit, or a feature is NaN or infinite.
        BackendUnavailable: the forced backend cannot serve the call.
    """
    _check_codebook(codebook)
    if features.dim() < 1 or features.shape[-1] != codebook.shape[1]:
        raise ValueError(f"features must end in d = {codebook.shape[1]}, got {list(features.shape)}")
    rows = features.reshape(-1, features.shape[-1])
    # One image of one line, whose channels lie next to each other in memory: a view, not a copy.
    code, _ = _NEAREST(NearestCall(rows.T[None, :, None, :], codebook, 1, None), backend)
    return code.view(features.shape[:-1])


@overload
def shuffle_nearest(
    features: Tensor, codebook: Tensor, r: int, neighbours: None = None, *, backend: str | None = None
) -> Tensor: ...


@overload
def shuffle_nearest(
    features: Tensor, codebook: Tensor, r: int, neighbours: Tensor, *, backend: str | None = None
) -> tuple[Tensor, Tensor]: ...


def shuffle_nearest(
    features: Tensor, codebook: Tensor, r: int, neighbours: Tensor | None = None, *, backend: str | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Pixel shuffle by r, then the nearest code of every cell.

    Args:
        features: float [B, d*r*r, h, w], channels laid out as `torch.nn.functional.pixel_shuffle` reads them.
        codebook: float [V, d], rows of unit length.
        r: the scale ratio.
        neighbours: int [V, k], see `neighbours`; its rows of the found codes are returned too.
        backend: force "cuda", "triton" or "torch".

    Returns:
        int64 [B, h*r, w*r], and with `neighbours` also [B, h*r, w*r, k] of its dtype. The CUDA and Triton backends do
        not wait for the device: there a cell with a feature that is NaN or infinite gives -1, and neighbours of -1.

    Raises:
        ValueError: shapes do not fit, or a feature is NaN or infinite.
        BackendUnavailable: the forced backend cannot serve the call.
    """
    _check_codebook(codebook)
    if r < 1:
        raise ValueError(f"r must be at least 1, got {r}")
    if features.dim() != 4 or features.shape[1] != codebook.shape[1] * r * r:
        raise ValueError(f"features must be [B, {codebook.shape[1] * r * r}, h, w], got {list(features.shape)}")
    if neighbours is not None and (neighbours.dim() != 2 or neighbours.shape[0] != codebook.shape[0]):
        raise ValueError(f"neighbours must be [V, k] with V = {codebook.shape[0]}, got {list(neighbours.shape)}")
    code, sets = _NEAREST(NearestCall(features, codebook, r, neighbours), backend)
    return code if neighbours is None else (code, sets)


def neighbours(codebook: Tensor, k: int) -> Tensor:
    """The k nearest codes of every code by cosine: B_k of the method.

    A code itself always comes first, also when others equal it; further ties go to the lower index. The table of k is
    the first k columns of the table of k + 1.

    Args:
        codebook: float [V, d], rows of unit length.
        k: how many, 1 <= k <= V.

    Returns:
        int32 [V, k].

    Raises:
        ValueError: k is out of range or the codebook has the wrong shape or values that are not finite.
    """
    _check_codebook(codebook)
    if not 1 <= k <= codebook.shape[0]:
        raise ValueError(f"k must be in [1, V] = [1, {codebook.shape[0]}], got {k}")
    return neighbours_reference(codebook, k)


def pooled_mass(
    cond: Tensor,
    uncond: Tensor | None,
    tokens: Tensor,
    neighbours: Tensor,
    *,
    tau: float,
    cfg_scale: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    backend: str | None = None,
) -> PooledMass:
    """Probability that the target gives to the neighbourhood of each draft token, and whether that is enough.

    `mass = sum over v in neighbours[token] of softmax(processed_logits)[v]`, at most 1, and exactly 1 when the
    neighbourhood is the whole vocabulary; `accept = mass >= tau`: tau = 0 accepts all, tau > 1 nothing.

    Args:
        cond: float [R, V], target logits under the condition.
        uncond: like `cond`, or None for no guidance.
        tokens: int64 [R], draft tokens in [0, V).
        neighbours: int [V, k], see `neighbours`.
        tau: the acceptance threshold.
        cfg_scale, temperature, top_k, top_p: see `sampling.processed_logits`.
        backend: force "cuda", "triton" or "torch".

    Returns:
        `PooledMass(mass float32 [R], accept bool [R])`. The CUDA and Triton backends do not wait for the device: there
        a row that the torch backend raises for, or whose token is out of range, has mass 0 (and is accepted at tau = 0
        alone).

    Raises:
        ValueError: an argument is wrong, or a row holds NaN or +inf, or nothing but -inf (the row is named).
        BackendUnavailable: the forced backend cannot serve the call.

    Source: MuLo-SD, arXiv 2601.05149, section 3 (pooled acceptance).
    """
    check_logits(cond, uncond)
    check_sampling(cfg_scale, temperature, top_k, top_p)
    if tokens.shape != cond.shape[:1]:
        raise ValueError(f"tokens must be [R] = [{cond.shape[0]}], got {list(tokens.shape)}")
    if neighbours.dim() != 2 or neighbours.shape[0] != cond.shape[1] or not 1 <= neighbours.shape[1] <= cond.shape[1]:
        raise ValueError(
            f"neighbours must be [V, k] with V = {cond.shape[1]} and 1 <= k <= V, got {list(neighbours.shape)}"
        )
    if not tau >= 0.0:
        raise ValueError(f"tau must be at least 0, got {tau}")
    call = PooledCall(cond, uncond, tokens, neighbours, tau, cfg_scale, temperature, top_k, top_p)
    return PooledMass(*_POOLED(call, backend))
