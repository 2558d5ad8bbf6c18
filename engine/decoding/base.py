"""What every decoder gets and gives."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from torch import Tensor

from ..cache import KVCache
from ..family import Family
from ..feed import Feed, Result
from ..request import Request


@dataclass(frozen=True)
class Outcome:
    """Tokens int64 [H, W] of the target grid; shares rejected and resampled, islands and depth if it verified; tokens
    that a verification of a draft tree brought; which tokens were resampled, bool [H, W], if candidates were verified.
    """

    tokens: Tensor
    rejection: float | None = None
    coverage: float | None = None
    islands: int | None = None
    depth: int | None = None
    accepted: float | None = None
    resampled: Tensor | None = None


Plan = Generator[list[Feed], list[Result], Outcome]


@dataclass(frozen=True)
class Decoder:
    """Base of all decoders: `resolve` fills what was left open from the family, `plan` makes one image.

    A plan is a generator: it yields the feeds that it waits for and is sent their results, so that a scheduler can run
    the feeds of many requests, each at its own phase, in one forward.
    """

    name: ClassVar[str] = ""

    @classmethod
    def text_settings(cls) -> dict[str, str]:
        """Settings that a text may state, and their types as annotated."""
        return {f.name: str(f.type) for f in fields(cls)}

    @classmethod
    def from_settings(cls, values: Mapping[str, Any]) -> Decoder:
        """A decoder from values of `text_settings`."""
        return cls(**values)

    def resolve(self, family: Family) -> Decoder:
        """This decoder with every open setting taken from the family; ValueError when the family lacks it."""
        return self

    def settings(self) -> dict[str, Any]:
        """Settings for stats and metadata."""
        return asdict(self)

    def grids(self, family: Family) -> tuple[int, ...]:
        """Grids on which a request holds a KV cache: what admission counts."""
        return (family.grids[-1],)

    def bytes_per_row(self, family: Family, *, collapse: bool = False) -> int:
        """Bytes of KV cache that a branch of a request holds; `collapse`: the prefix takes one slot."""
        return sum(KVCache.bytes_per_row(family.model(grid), grid, collapse=collapse) for grid in self.grids(family))

    def plan(self, request: Request) -> Plan:
        """Make the image of a request."""
        raise TypeError(f"{type(self).__name__} does not decode")
