"""The arguments of one call of `kv_write`, as its reference and every backend take them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Call(NamedTuple):
    """The arguments of the reference, in its order; for their meaning see `kv_write`."""

    q: Tensor
    k: Tensor
    v: Tensor
    slots: Tensor
    rotary: Tensor | None
    k_cache: Tensor
    v_cache: Tensor
    start: int | None = None
    cache_rows: Tensor | None = None
