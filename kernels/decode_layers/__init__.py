"""All layers of a model for the few tokens of a decoding step, keys and values included."""

from __future__ import annotations

import torch
from torch import Tensor

from ..registry import Op
from .call import Call, Layer, Stack, Weight
from .reference import decode_layers_reference

__all__ = ["OP", "Call", "Layer", "Stack", "Weight", "decode_layers"]

# Called with a `Call`, it skips the checks of the function below. Not registered with torch.library: its arguments are
# no tensors.
OP = Op("decode_layers", Call, decode_layers_reference, modules={"cpu": f"{__name__}.cpu"})


def decode_layers(
    x: Tensor,
    stack: Stack,
    slots: Tensor,
    valid: Tensor | None = None,
    *,
    kv_len: int,
    first_row: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Every layer of a pre-norm transformer for a few tokens, whose keys and values are written on the way.

    Each layer is `x += attention(norm(x))`, then `x += swiglu(norm(x))`, what is added being normalised once more in
    layers that have such norms. Keys go to the slot of their token; the query
    at slot a sees slot `b < kv_len` iff `b <= a`, and `valid[b]` where `valid` is given: what `kv_write` and
    `verify_attention` do for a token, layer by layer.

    Args:
        x: float [rows, Q, dim], embedded tokens; not changed.
        stack: the layers and their caches, which are written.
        slots: int64 [rows, Q], distinct in a row.
        valid: bool [rows, S], slots that hold a committed key, or None when all up to each query do.
        kv_len: known on the host; later slots are not seen.
        first_row: of the caches, which belongs to row 0 of `x`.
        backend: force "cpu" or "torch".

    Returns:
        float [rows, Q, dim], of the type of `x`.

    Raises:
        ValueError: shapes do not fit.
        BackendUnavailable: the forced backend cannot serve the call.
    """
    if not stack.layers:
        raise ValueError("a stack needs at least one layer")
    cache = stack.layers[0].k_cache
    rows, width = slots.shape[0], stack.layers[0].wqkv.weight.shape[1]
    if x.dim() != 3 or x.shape[:2] != slots.shape or x.shape[2] != width:
        raise ValueError(f"x must be [rows, Q, dim] = {[*slots.shape, width]}, got {list(x.shape)}")
    if slots.dtype != torch.int64:
        raise ValueError(f"slots must be int64, got {slots.dtype}")
    if not 0 <= first_row <= cache.shape[0] - rows:
        raise ValueError(f"first_row must be in [0, {cache.shape[0] - rows}] for {rows} rows, got {first_row}")
    if not 1 <= kv_len <= cache.shape[1]:
        raise ValueError(f"kv_len must be in [1, S] = [1, {cache.shape[1]}], got {kv_len}")
    if slots.numel() and not 0 <= int(slots.min()) <= int(slots.max()) < kv_len:
        raise ValueError(f"slots must be in [0, kv_len) = [0, {kv_len}), got {int(slots.min())} to {int(slots.max())}")
    if valid is not None and (valid.dtype != torch.bool or valid.shape != (rows, cache.shape[1])):
        raise ValueError(f"valid must be bool {[rows, cache.shape[1]]}, got {valid.dtype} {list(valid.shape)}")
    out: Tensor = OP(Call(x, stack, slots, valid, kv_len, first_row), backend)
    return out
