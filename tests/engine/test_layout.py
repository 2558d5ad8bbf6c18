"""Layouts of image tokens: slots, row ends, grids one behind another, and the coordinates of each."""

from __future__ import annotations

import pytest
import torch

from mulosd.engine.layout import Layout

LAYOUTS = [Layout((3,)), Layout((4,), row_ends=True), Layout((2, 5)), Layout((2, 3), row_ends=True)]


def written(layout: Layout) -> list[int | None]:
    """The sequence written out, a position or None for a row end, in the plainest way."""
    found: list[int | None] = []
    position = 0
    for side in layout.grids:
        for _ in range(side):
            for _ in range(side):
                found.append(position)
                position += 1
            if layout.row_ends:
                found.append(None)
    return found[:-1] if layout.row_ends else found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_slots_are_those_of_the_sequence_written_out(layout: Layout) -> None:
    sequence = written(layout)
    assert layout.slots == len(sequence)
    assert layout.size == sum(side * side for side in layout.grids)
    assert [layout.slot(p) for p in range(layout.size)] == [sequence.index(p) for p in range(layout.size)]
    assert layout.slots_of(range(layout.size)) == list(range(layout.slots))
    assert layout.slots_of(range(layout.size), ends=False) == [s for s, p in enumerate(sequence) if p is not None]
    assert layout.row_last == {sequence[s - 1] for s, p in enumerate(sequence) if p is None}
    assert layout.plain == (None not in sequence)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("missing", [0, 1, 4])
def test_a_sequence_holds_row_ends_and_says_where_the_next_logits_are(layout: Layout, missing: int) -> None:
    n = layout.size - missing
    tokens = torch.arange(100, 100 + n)[None].repeat(2, 1)
    fed, last = layout.sequence(tokens, 7)
    wanted = [7 if p is None else 100 + p for p in written(layout)]
    assert fed[1].tolist() == wanted[: fed.shape[1]]
    assert fed.shape[1] == int(last[-1]) + 1
    for position in range(n - 1):  # the token whose logits are those of the next position stands right before it
        assert wanted[int(last[position]) + 1] == 100 + position + 1


def test_a_token_is_like_the_one_above_or_the_same_place_of_the_grid_before() -> None:
    layout = Layout((2, 4))
    assert layout.start == 4
    assert [layout.like(p) for p in range(4)] == [None, None, 0, 1]
    assert [layout.like(4 + c) for c in range(4)] == [0, 0, 1, 1], "the first row: the small grid's first row"
    assert [layout.like(8 + c) for c in range(4)] == [4, 5, 6, 7]
    assert [layout.part(p) for p in (3, 4, 19)] == [(0, 2), (4, 4), (4, 4)]


def test_coordinates_of_one_grid_behind_another() -> None:
    found = Layout((2, 3)).coordinates().tolist()
    assert found[:4] == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]
    assert found[4:7] == [[2, 2, 2], [2, 2, 3], [2, 2, 4]], "begins behind the largest coordinate so far"
    assert found[-1] == [2, 4, 4]
    ends = Layout((2,), row_ends=True).coordinates().tolist()
    assert ends == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1]], "a row has one column more"


@pytest.mark.parametrize("grids", [(), (0,), (4, -1)])
def test_a_layout_without_grids_is_refused(grids: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one grid at least"):
        Layout(grids)
