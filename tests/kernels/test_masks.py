"""Draft masks: builders against their definitions, packing against bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mulosd.kernels import masks


@given(st.integers(0, 2**30), st.integers(1, 100), st.sampled_from([0.0, 0.5, 1.0]))
def test_round_trip_and_bit_order(seed: int, length: int, density: float) -> None:
    mask = torch.rand(length, length, generator=torch.Generator().manual_seed(seed)) < density
    words = masks.pack(mask)
    assert words.dtype == torch.int32
    assert words.shape == (length, (length + 31) // 32)
    assert torch.equal(masks.unpack(words, length), mask)
    row = seed % length
    value = int.from_bytes(words[row].numpy().astype("<i4").tobytes(), "little")
    assert value == sum(1 << j for j in range(length) if mask[row, j])


def test_bit_31_is_the_sign() -> None:
    mask = torch.zeros(1, 33, dtype=torch.bool)
    mask[0, 31] = True
    assert masks.pack(mask).tolist() == [[-(2**31), 0]]


def test_raster_causal() -> None:
    assert masks.raster_causal(3).tolist() == [[True, False, False], [True, True, False], [True, True, True]]


@given(st.data(), st.integers(1, 20))
def test_tree_is_the_set_of_ancestors(data: st.DataObject, length: int) -> None:
    parents = [data.draw(st.integers(-1, i - 1)) for i in range(length)]
    mask = masks.tree(torch.tensor(parents))
    for node in range(length):
        path, up = {node}, parents[node]
        while up >= 0:
            path.add(up)
            up = parents[up]
        assert set(mask[node].nonzero().flatten().tolist()) == path


def test_a_long_chain_and_batches_of_trees() -> None:
    for length in (1, 2, 3, 64, 65, 100):
        assert torch.equal(masks.tree(torch.arange(length) - 1), masks.raster_causal(length))
    parents = torch.tensor([[[-1, 0, 1, 0]], [[-1, -1, 1, 2]]])
    batch = masks.tree(parents)
    assert batch.shape == (2, 1, 4, 4)
    for i in range(2):
        assert torch.equal(batch[i, 0], masks.tree(parents[i, 0]))
    labels = torch.tensor([[1, 0, 1], [2, 2, 1]])
    assert torch.equal(masks.islands(labels), torch.stack([masks.islands(row) for row in labels]))
    assert torch.equal(masks.unpack(masks.pack(batch), 4), batch)


def test_nothing_waits_for_a_device() -> None:
    """A meta tensor has no values: whatever asked for one on the host would raise."""
    parents = torch.empty(40, dtype=torch.int64, device="meta")
    with pytest.raises(RuntimeError, match="meta"):
        parents.tolist()
    for mask in (masks.raster_causal(40, device="meta"), masks.tree(parents), masks.islands(parents)):
        assert mask.device.type == "meta"
        assert mask.shape == (40, 40)
        assert masks.unpack(masks.pack(mask), 40).device.type == "meta"


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20))
def test_islands(labels: list[int]) -> None:
    mask = masks.islands(torch.tensor(labels))
    for i, own in enumerate(labels):
        for j, other in enumerate(labels):
            assert bool(mask[i, j]) == (j <= i and other in (own, 0))


def test_errors() -> None:
    with pytest.raises(ValueError, match="length"):
        masks.raster_causal(0)
    with pytest.raises(ValueError, match="node 1"):
        masks.tree(torch.tensor([-1, 1]))
    with pytest.raises(ValueError, match=r"node 0 .* got -2"):
        masks.tree(torch.tensor([-2, 0]))
    with pytest.raises(ValueError, match="bool"):
        masks.pack(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="int32"):
        masks.unpack(torch.zeros(2, 1, dtype=torch.int32), 33)
