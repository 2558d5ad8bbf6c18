"""Streams, events and graphs of a made-up device.

A graph records what ran on the device during its capture, with the memory that it read and wrote, and runs it again on
that memory: stale buffers, freed memory and another current device show as they would.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten

from .log import Log
from .tensors import log_of, storage_of

Record = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], list[Tensor]]


class FakeStream:
    """A stream; work runs at once, whatever the stream."""

    def __init__(self, device: Any = None) -> None:
        index = None if device is None else torch.device(device).index
        self.device_index = log_of().current if index is None else index
        self.cuda_stream = 0

    def wait_stream(self, other: FakeStream) -> None:
        if other.device_index != self.device_index:
            log_of().mix("a stream waits for one of another device")

    def synchronize(self) -> None:
        log_of().wait("synchronize")


class FakeEvent:
    """An event; one that other work follows holds the host back, a fresh one makes it wait."""

    def __init__(self, **_: Any) -> None:
        self.flown = self.work = 0

    def record(self, stream: Any = None) -> None:
        self.flown, self.work = log_of().flown, log_of().work

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        log = log_of()
        if log.work > self.work:
            log.throttles += 1
            log.land(self.flown)
        else:
            log.wait("event that was just recorded")


class FakeGraph:
    """What was captured, to be run again."""

    def __init__(self) -> None:
        self.log: Log = log_of()
        self.records: list[Record] = []
        self.made: set[int] = set()
        self.device, self.pool, self.replays = -1, None, 0

    def __del__(self) -> None:
        if Log.active is self.log and self.records:
            self.log.destroyed += 1

    def record(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Keep one operation on inner tensors, with the memory of its results."""
        outs = [t for t in tree_flatten(out)[0] if isinstance(t, Tensor)]
        read = {storage_of(t) for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)}
        fresh = [t for t in outs if storage_of(t) not in read]
        self.made |= {storage_of(t) for t in fresh}
        self.records.append((call, args, kwargs, outs))

    def outside(self) -> set[int]:
        """Memory that is read and was not made in the capture."""
        flat = [t for _, args, kwargs, _ in self.records for t in tree_flatten((args, kwargs))[0]]
        return {storage_of(t) for t in flat if isinstance(t, Tensor)} - self.made

    def replay(self) -> None:
        """Run everything again, into the same memory."""
        log = self.log
        if log.current != self.device:
            log.forbid(f"a graph of cuda:{self.device} is replayed while cuda:{log.current} is current")
        if not self.replays:
            self.needs = self.outside()
        if any(not log.alive[at] and at not in log.pinned for at in self.needs):
            log.forbid("a graph is replayed whose memory was freed")
        self.replays += 1
        log.replays += 1
        log.replaying = True
        try:
            with _disable_current_modes():
                for call, args, kwargs, outs in self.records:
                    again = [t for t in tree_flatten(call(*args, **kwargs))[0] if isinstance(t, Tensor)]
                    for old, new in zip(outs, again, strict=True):
                        if old.data_ptr() != new.data_ptr():
                            old.copy_(new)
        finally:
            log.replaying = False


class FakeCapture:
    """Stands for `torch.cuda.graph`."""

    def __init__(
        self, graph: FakeGraph, pool: Any = None, stream: Any = None, capture_error_mode: str = "global"
    ) -> None:
        self.graph, self.stream, self.mode = graph, stream, capture_error_mode
        graph.pool = pool

    def __enter__(self) -> None:
        log = log_of()
        if self.stream is None:
            log.forbid("a capture on the stream that all captures of the process share")
        elif self.stream.device_index != log.current:
            log.forbid(f"a capture on a stream of another device than the current cuda:{log.current}")
        if self.mode != "thread_local":
            log.forbid(f"a capture in mode {self.mode!r}: work of other threads would break it")
        log.wait("before a capture")
        self.graph.device, log.capturing = log.current, self.graph

    def __exit__(self, kind: Any, *_: Any) -> None:
        log = log_of()
        log.capturing = None
        if kind is None:
            log.captures.append(self.graph.device)


@contextlib.contextmanager
def current_device(device: Any) -> Iterator[None]:
    """Stands for `torch.cuda.device`."""
    log = log_of()
    before, index = log.current, device if isinstance(device, int) else torch.device(device).index
    log.current = before if index is None or index < 0 else index
    try:
        yield
    finally:
        log.current = before


def patches() -> dict[str, Any]:
    """What stands for the names of `torch.cuda`."""
    numbers = itertools.count(1)

    @contextlib.contextmanager
    def stream_context(stream: Any) -> Iterator[None]:
        yield

    return {
        "CUDAGraph": FakeGraph,
        "graph": FakeCapture,
        "graph_pool_handle": lambda: (0, next(numbers)),
        "Stream": FakeStream,
        "Event": FakeEvent,
        "stream": stream_context,
        "device": current_device,
        "device_of": lambda tensor: current_device(tensor.device),
        "current_device": lambda: log_of().current,
        "current_stream": lambda device=None: FakeStream(device),
        "is_current_stream_capturing": lambda: log_of().capturing is not None,
        "synchronize": lambda *_: log_of().wait("synchronize"),
    }
