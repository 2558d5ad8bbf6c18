"""What every decoder gets and gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from ..arguments import check_settings
from ..cache import KVCache
from ..family import Family
from ..request import Outcome, Plan, Request

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Decoder", "OneGrid", "Outcome", "Plan"]


@dataclass(frozen=True)
class Decoder:
    """Base of all decoders: `resolve` fills what was left open from the family, `plan` makes one image.

    A plan is a generator: it yields the feeds that it waits for and is sent their results, so that a scheduler can run
    the feeds of many requests, each at its own phase, in one forward.
    """

    name: ClassVar[str] = ""
    # Layouts beside the raster that it serves: with a token at the end of each row, with a grid before the image.
    row_ends: ClassVar[bool] = False
    first_grid: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_settings(self)

    @classmethod
    def text_settings(cls) -> dict[str, str]:
        """Settings that a text may state, and their types as annotated."""
        return {f.name: str(f.type) for f in fields(cls)}

    @classmethod
    def from_settings(cls, values: Mapping[str, Any]) -> Self:
        """A decoder from values of `text_settings`."""
        return cls(**values)

    def check_least(self, **least: int) -> None:
        """ValueError for the first of these settings that is given and below its least value."""
        for name, value in least.items():
            given = getattr(self, name)
            if given is not None and not given >= value:
                raise ValueError(f"{name} must be at least {value}, got {given}")

    def resolve(self, family: Family) -> Decoder:
        """This decoder with every open setting taken from the family; ValueError when the family lacks it."""
        return self

    def settings(self) -> dict[str, Any]:
        """Values of `text_settings`, for stats and metadata."""
        return asdict(self)

    def changed(self, **settings: Any) -> Self:
        """This decoder with other values of some of `text_settings`."""
        return self.from_settings({**self.settings(), **settings})

    def grids(self, family: Family) -> tuple[int, ...]:
        """Grids on which a request holds a KV cache: what admission counts."""
        return (family.grids[-1],)

    def caches(self, family: Family) -> tuple[tuple[int, bool], ...]:
        """The KV caches of which a request takes rows: grid, and whether it is the feature drafter's."""
        return tuple((grid, False) for grid in self.grids(family))

    def bytes_per_row(self, family: Family, *, collapse: bool = False) -> int:
        """Bytes of KV cache that a branch of a request holds; `collapse`: the prefix takes one slot."""
        return sum(KVCache.bytes_per_row(family.model(grid), grid, collapse=collapse) for grid in self.grids(family))

    def check_layout(self, family: Family) -> None:
        """ValueError with the reason, where this decoder cannot draw images whose tokens stand as they do in a family's
        sequences."""
        first = family.ar.layout(family.grids[-1]).grids[:-1]
        if first and not self.first_grid:
            raise ValueError(
                f"decoder {self.name!r} draws one grid alone, and family {family.name!r} writes one of "
                f"{first[0]}x{first[0]} tokens before that of the image: take serial, zipar, jacobi or mulo, whose "
                f"draft that grid is"
            )
        if not self.row_ends and any(family.model(grid).layout(grid).row_ends for grid in self.grids(family)):
            raise ValueError(
                f"decoder {self.name!r} knows no tokens at the ends of rows, which the images of family "
                f"{family.name!r} have: take serial, zipar or jacobi"
            )

    def plan(self, request: Request) -> Plan:
        """Make the image of a request."""
        raise TypeError(f"{type(self).__name__} does not decode")


class OneGrid(Decoder):
    """A decoder of one grid, with a setting `grid`: its side in tokens, None for the largest of the family."""

    grid: int | None

    def side(self, family: Family) -> int:
        """The grid that is decoded; ValueError lists those that the family has."""
        side = family.grids[-1] if self.grid is None else self.grid
        family.model(side)
        return side

    def resolve(self, family: Family) -> Self:
        return self.changed(grid=self.side(family))

    def grids(self, family: Family) -> tuple[int, ...]:
        return (self.side(family),)
