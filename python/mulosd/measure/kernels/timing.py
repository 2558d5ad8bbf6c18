"""How long a call takes: CUDA graphs between events with a cold L2 on a GPU, the wall clock on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

REPEATS = 50
FEWEST = 5


def time_calls(call: Callable[[], Any], device: torch.device, seconds: float) -> list[float]:
    """Microseconds of `call`, measured for about so many seconds, at least 5 times; it has run before."""
    return time_cuda(call, device, seconds) if device.type == "cuda" else time_cpu(call, seconds)


def time_cpu(call: Callable[[], Any], seconds: float) -> list[float]:
    """By the wall clock; each sample is as many calls as make it longer than the clock's noise."""
    begin = time.perf_counter()
    call()
    once = max(time.perf_counter() - begin, 1e-7)
    inner = max(1, int(2e-4 / once))
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < FEWEST or (time.perf_counter() < end and len(samples) < REPEATS):
        begin = time.perf_counter()
        for _ in range(inner):
            call()
        samples.append(1e6 * (time.perf_counter() - begin) / inner)
    return samples


def time_cuda(call: Callable[[], Any], device: torch.device, seconds: float) -> list[float]:
    """Between events, L2 flushed before each call; replayed from a CUDA graph where the call can be captured."""
    with torch.cuda.device(device):
        run = captured(call) or call
        # Overwriting twice the L2 evicts whatever the last call left there.
        flush = torch.empty(2 * torch.cuda.get_device_properties(device).L2_cache_size, dtype=torch.int8, device=device)
        samples: list[float] = []
        end = time.perf_counter() + seconds
        while len(samples) < FEWEST or (time.perf_counter() < end and len(samples) < 4 * REPEATS):
            pairs = []
            for _ in range(FEWEST):
                flush.zero_()
                before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                before.record()
                run()
                after.record()
                pairs.append((before, after))
            torch.cuda.synchronize()
            samples += [1e3 * before.elapsed_time(after) for before, after in pairs]
    return samples


def captured(call: Callable[[], Any]) -> Callable[[], None] | None:
    """The replay of a CUDA graph of the call, or None where it cannot be captured, because it waits for the device."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph.replay
