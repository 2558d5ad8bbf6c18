"""The arguments of one call of `expand_islands`, as its reference and every backend take them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Call(NamedTuple):
    """The arguments of the reference, in its order; for their meaning see `expand_islands`."""

    rejected: Tensor
    radius: int
    window: int | None
