"""The setting `cascade` of `mulo`: the draft goes up grid by grid, each verified and repaired, not at one leap."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..batch import Feed, Result
from ..family import Family
from ..request import Request
from ..sampling import Purpose
from .mulo import Candidates, MuloSD
from .strategy import Strategy


@dataclass(frozen=True)
class Cascade(Strategy):
    """Goes through the grids between the drafter's and the target's, each verified and repaired."""

    setting: ClassVar[str] = "cascade"
    value: ClassVar[bool] = True

    def check(self, rows_per_cycle: int | None) -> None:
        if rows_per_cycle is not None:
            raise ValueError("a cascade works in one shot: leave rows_per_cycle out")

    def grids(self, family: Family, small: int) -> tuple[int, ...]:
        return tuple(grid for grid in family.grids if small < grid < family.grids[-1])

    def lift(self, decoder: MuloSD, request: Request, draft: Tensor) -> Generator[list[Feed], list[Result], Tensor]:
        for grid in self.grids(request.family, draft.shape[-1]):
            level = Candidates(decoder, request, grid, Purpose.LEVEL)
            yield from level.open()
            yield from level.settle(draft, 0, grid)
            draft = level.rows(0, grid)
            request.show("level", draft)
        return draft
