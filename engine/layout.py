"""Where the tokens of an image stand in a sequence, behind the condition.

Positions count the codes of an image and are all that a decoder speaks of. Slots count what the model is fed: codes
and, where a model was trained with one, a token behind every row that says that the row is over. Which token that is,
is known, so nothing is ever drawn for its slot: it is fed with the code before it, and its logits are those of the
first code of the next row. Tokens that begin an image belong to the condition; those that end it are never needed.

Some models write one grid behind another: a small one that says what is where, then the image (GLM-Image). Both are one
sequence; positions of the image then begin at `start`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The tokens of one image.

    Args:
        grids: sides, in codes, of the grids that follow one another; the last one is the image. One grid without row
            ends is the usual raster.
        row_ends: whether a token of its own follows each row but the last.

    Raises:
        ValueError: no grid, or a side below 1.
    """

    grids: tuple[int, ...]
    row_ends: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "grids", tuple(self.grids))
        if not self.grids or any(side < 1 for side in self.grids):
            raise ValueError(f"a layout has one grid at least, of sides of 1 and more, got {list(self.grids)}")

    @property
    def side(self) -> int:
        """Side of the image in codes."""
        return self.grids[-1]

    @cached_property
    def size(self) -> int:
        """Codes of all grids."""
        return sum(side * side for side in self.grids)

    @cached_property
    def start(self) -> int:
        """Position of the first code of the image."""
        return self.size - self.side * self.side

    @cached_property
    def slots(self) -> int:
        """Slots of all codes and row ends."""
        return self.size + (sum(self.grids) - 1 if self.row_ends else 0)

    @property
    def plain(self) -> bool:
        """Whether every position has the slot of its own number."""
        return not self.row_ends

    @cached_property
    def parts(self) -> tuple[tuple[int, int], ...]:
        """First position and side of each grid."""
        found, start = [], 0
        for side in self.grids:
            found.append((start, side))
            start += side * side
        return tuple(found)

    def part(self, position: int) -> tuple[int, int]:
        """First position and side of the grid that a position belongs to."""
        return next(part for part in reversed(self.parts) if position >= part[0])

    @cached_property
    def _rows(self) -> tuple[int, ...]:
        """Positions that end a row that a row end follows, ascending."""
        ends = [start + side * (row + 1) - 1 for start, side in self.parts for row in range(side)]
        return tuple(ends[:-1]) if self.row_ends else ()

    @cached_property
    def _slot(self) -> tuple[int, ...]:
        """Slot of each position."""
        ends, before, slots = frozenset(self._rows), 0, []
        for position in range(self.size):
            slots.append(position + before)
            before += position in ends
        return tuple(slots)

    @cached_property
    def row_last(self) -> frozenset[int]:
        """Positions behind which a row end follows."""
        return frozenset(self._rows)

    def slot(self, position: int) -> int:
        """Slot of a position, counted from the end of the condition."""
        return self._slot[position] if self.row_ends else position

    def slots_of(self, positions: Iterable[int], *, ends: bool = True) -> list[int]:
        """Slots of positions, and with `ends` of the row ends behind them too."""
        if not self.row_ends:
            return list(positions)
        found = []
        for position in positions:
            found.append(self._slot[position])
            if ends and position in self.row_last:
                found.append(self._slot[position] + 1)
        return found

    def like(self, position: int) -> int | None:
        """The position before this one whose token it most likely resembles: the one above it in its grid; in the
        first row, the one that shows the same place in the grid before; None where there is neither."""
        start, side = self.part(position)
        if position - side >= start:
            return position - side
        if start == 0:
            return None
        first, small = next(part for part in reversed(self.parts) if part[0] < start)
        row, column = divmod(position - start, side)
        return first + row * small // side * small + column * small // side

    def sequence(self, tokens: Tensor, row_end: int) -> tuple[Tensor, Tensor]:
        """Codes int64 [B, n] of the first n positions with the row ends between them.

        Args:
            tokens: the codes.
            row_end: the token at the end of a row.

        Returns:
            What is fed, int64 [B, m], and for each position the index in it of the token whose logits are those of the
            next position, int64 [n].
        """
        n = tokens.shape[1]
        if not self.row_ends:
            return tokens, torch.arange(n, device=tokens.device)
        where = torch.tensor(self._slot[:n], device=tokens.device)
        last = torch.tensor([self._slot[p] + (p in self.row_last) for p in range(n)], device=tokens.device)
        fed = tokens.new_full((tokens.shape[0], int(last[-1]) + 1 if n else 0), row_end)
        fed[:, where] = tokens
        return fed, last

    def coordinates(self) -> Tensor:
        """Temporal, vertical and horizontal coordinate int64 [slots, 3] of each slot, from the first slot behind the
        condition on: a grid begins behind the largest coordinate of the one before it (M-RoPE, Qwen2-VL,
        arXiv 2409.12191). With row ends a row has one column more."""
        found, begin = [], 0
        for number, side in enumerate(self.grids):
            width = side + self.row_ends
            rows = torch.arange(side).repeat_interleave(width)
            columns = torch.arange(width).repeat(side)
            if self.row_ends and number == len(self.grids) - 1:
                rows, columns = rows[:-1], columns[:-1]
            found.append(torch.stack([torch.zeros_like(rows), rows, columns], dim=1) + begin)
            begin += width
        return torch.cat(found)
