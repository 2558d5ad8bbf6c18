"""The made-up device sees what a real one refuses, waits for, or gets wrong."""

from __future__ import annotations

import pytest
import torch

from .device import FakeCuda
from .log import Log


def seen(log: Log) -> set[str]:
    return {what for counter in (log.waits, log.mixes, log.illegal) for what, _ in counter}


def test_tensors_of_several_devices_are_a_mistake() -> None:
    with FakeCuda() as log:
        a, b = torch.ones(2, device="cuda"), torch.ones(2, device="cuda:1")
        assert (a + 1).sum().item() == 4 and log.sound()
        _ = a + torch.ones(2)
        assert "add" in seen(log) and not log.sound()
        _ = a + b
        assert "operation on cuda:0, cuda:1" in seen(log)


def test_the_host_waits_for_pageable_copies_and_results_alone() -> None:
    with FakeCuda() as log:
        there = torch.zeros(3, dtype=torch.int64, device="cuda")
        log.reset()
        there.copy_(torch.tensor([1, 2, 3]).pin_memory(), non_blocking=True)
        there += 1
        assert not log.waits and sum(log.launches.values()) == 2
        there.copy_(torch.tensor([1, 2, 3]), non_blocking=True)
        _ = there[torch.tensor([0])]
        assert there.tolist() == [1, 2, 3]
        assert seen(log) == {"copy from pageable memory", "index by an index of the host", "tolist"}


def test_pinned_memory_must_stand_until_it_is_copied() -> None:
    with FakeCuda() as log:
        source, there = torch.tensor([1, 2]).pin_memory(), torch.zeros(2, dtype=torch.int64, device="cuda")
        there.copy_(source, non_blocking=True)
        source[0] = 9
        assert not log.sound()


def captured(log: Log, device: str = "cuda:0") -> tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]:
    """A graph that doubles what a buffer holds, with the buffer and the result."""
    source = torch.tensor([1.0, 2.0]).to(device)
    with torch.cuda.device(device):
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            out = source * 2
    return graph, source, out


def test_a_graph_runs_again_on_the_memory_it_was_captured_with() -> None:
    with FakeCuda() as log:
        graph, source, out = captured(log)
        source.fill_(5.0)
        graph.replay()
        assert log.sound() and out.tolist() == [10.0, 10.0] and log.replays == 1
        del source
        graph.replay()
        assert "a graph is replayed whose memory was freed" in seen(log)
        del graph
        assert log.destroyed == 1


def test_a_graph_belongs_to_the_current_device() -> None:
    with FakeCuda() as log:
        graph, _source, _out = captured(log, "cuda:1")
        assert log.sound() and log.captures == [1]
        graph.replay()
        assert "a graph of cuda:1 is replayed while cuda:0 is current" in seen(log)


def test_what_a_capture_forbids() -> None:
    with FakeCuda() as log:
        value = torch.ones(2, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            value.tolist()
            _ = torch.ones(1, device="cuda:1") + 1
        assert {"tolist", "work on cuda:1 during a capture on cuda:0"} < {what for what, _ in log.illegal}
        assert any("shared" in what or "share" in what for what, _ in log.illegal)
        assert any("global" in what for what, _ in log.illegal)


def test_memory_that_is_refused() -> None:
    with FakeCuda() as log:
        log.refuse = lambda count, _: count > 100
        assert torch.zeros(20, device="cuda").shape == (20,)
        with pytest.raises(torch.OutOfMemoryError):
            torch.zeros(30, device="cuda")


def test_nothing_is_left_behind() -> None:
    with FakeCuda():
        assert torch.cuda.is_available()
    assert not torch.cuda.is_available()
    with pytest.raises((RuntimeError, AssertionError)):
        torch.zeros(1, device="cuda")
