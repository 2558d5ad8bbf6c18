"""What a request tells while it is under way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from .decoding.base import Outcome


@dataclass(frozen=True)
class Preview:
    """Tokens that are worth showing already.

    Args:
        kind: "draft" (rows of the small grid), "level" (a whole grid of a cascade) or "band" (verified rows of the
            target grid).
        tokens: int64 [h, grid].
        row: number of the first row.
    """

    kind: str
    tokens: Tensor
    row: int


@dataclass(frozen=True)
class Finished:
    """A request is done. `outcome` is the decoder's."""

    outcome: Outcome


@dataclass(frozen=True)
class Failed:
    """A request ended with an exception; the others are unharmed."""

    error: Exception


@dataclass(frozen=True)
class Event:
    """Something happened to the request of this number."""

    request: int
    what: Preview | Finished | Failed
