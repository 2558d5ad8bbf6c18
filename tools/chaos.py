"""Requests that come, go, are dropped and fail at random: every image that is finished is the one made alone.

    python tools/chaos.py --requests 5000

Adds, aborts, generates, streams and steps at random, from one thread and from several, while forwards, allocations
and image decoders fail now and then. At the end no request, cache row or byte may be left, each request was told of
once, and the memory of the process has not grown. Exits with 1 for any fault.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from mulosd import Engine, SchedulerConfig
from mulosd.engine import scheduler
from mulosd.engine.cache import KVCache
from mulosd.engine.random_family import random_family

DECODERS = (
    "serial",
    "zipar:window=2",
    "jacobi:window=8",
    "draft-only:scale=2",
    "mulo:scale=2:tau=0.05:radius=1:pool=3",
    "mulo:scale=2:tau=0.1:radius=0:pool=2:upsampler=pixel:window=2",
    "mulo:scale=2:tau=0.05:radius=1:pool=3:rows_per_cycle=2",
    "eagle",
    "eagle:coupled=true",
)
SAMPLINGS = ("", "cfg_scale=2", "temperature=0", "cfg_scale=1.5:top_k=5:top_p=0.9")
PROMPTS = ("red apple", "blue pear", "apple")
SEEDS = 6


class Injected(RuntimeError):
    """A fault that was made on purpose."""


class Chaos:
    """An engine of tiny random models under random use.

    Args:
        seed: of what happens.
        rate: share of forwards and of decoded images that fail; allocations, which are few, fail ten times as often.
        config: limits of the engine; by default few requests run at a time.
    """

    def __init__(self, seed: int = 0, rate: float = 0.02, config: SchedulerConfig | None = None) -> None:
        torch.set_num_threads(1)
        self.rng, self.rate = random.Random(seed), rate
        self.engine = Engine(random_family((2, 4), drafter=True), config=config or SchedulerConfig(max_running=5))
        self.alone = Engine(self.engine.family)
        self.wanted: dict[tuple[Any, ...], torch.Tensor] = {}
        self.asked: dict[int, tuple[Any, ...]] = {}
        self.count: Counter[str] = Counter()
        self.faults: list[str] = []
        self.armed = threading.local()

    def reference(self, key: tuple[Any, ...]) -> torch.Tensor:
        """Tokens int64 [H, W] of a request made alone, by an engine that nothing happens to."""
        if key not in self.wanted:
            prompt, decoder, sampling, seed = key
            self.armed.off = True
            made = self.alone.generate(prompt, decoder=decoder, sampling=sampling or None, seed=seed)
            self.armed.off = False
            self.wanted[key] = made.tokens[0]
        return self.wanted[key]

    def draw(self) -> tuple[Any, ...]:
        return (*(self.rng.choice(one) for one in (PROMPTS, DECODERS, SAMPLINGS)), self.rng.randrange(SEEDS))

    def fail(self, what: str) -> None:
        """Raise now and then."""
        if not getattr(self.armed, "off", False) and self.rng.random() < self.rate * (
            10 if what == "allocation" else 1
        ):
            self.count[f"injected: {what}"] += 1
            raise (torch.OutOfMemoryError if what == "allocation" else Injected)(what)

    @contextmanager
    def injected(self) -> Iterator[None]:
        """Faults in forwards, in the growth of caches and in the decoding of images."""
        run, allocate, decode = scheduler.run, KVCache._allocate, self.engine.family.tokenizer.decode

        def faulty_run(*given: Any) -> Any:
            self.fail("forward")
            found = run(*given)
            self.fail("forward")  # when keys and values are written, and nothing is reported yet
            return found

        def faulty_allocate(cache: KVCache, rows: int) -> None:
            self.fail("allocation")
            allocate(cache, rows)

        def faulty_decode(tokens: torch.Tensor) -> torch.Tensor:
            self.fail("decoding")
            return decode(tokens)

        with (
            mock.patch.object(scheduler, "run", faulty_run),
            mock.patch.object(KVCache, "_allocate", faulty_allocate),
            mock.patch.object(self.engine.family.tokenizer, "decode", faulty_decode),
        ):
            yield

    def finished(self, kind: str, key: tuple[Any, ...], tokens: torch.Tensor) -> None:
        self.count[kind] += 1
        if not torch.equal(tokens, self.reference(key)):
            self.faults.append(f"{kind} {key}: other tokens than alone")

    def told(self, update: Any) -> None:
        """Take what `step` reports."""
        key = self.asked.get(update.request)
        if key is None:
            self.faults.append(f"an update of request {update.request}, which was dropped, is done or never was")
        elif update.kind == "final":
            del self.asked[update.request]
            self.finished("finished", key, update.tokens)
        elif update.kind == "failed":
            del self.asked[update.request]
            self.count["failed"] += 1
            if not isinstance(update.error, (Injected, torch.OutOfMemoryError)):
                self.faults.append(f"{key} failed of its own: {update.error!r}")

    def act(self) -> None:
        """One thing at random."""
        turn = self.rng.random()
        if turn < 0.2:
            key = self.draw()
            prompt, decoder, sampling, seed = key
            options = {"decoder": decoder, "sampling": sampling or None, "seed": seed, "previews": turn < 0.05}
            self.asked[self.engine.add_request(prompt, **options)] = key
            self.count["added"] += 1
        elif turn < 0.23 and self.asked:
            number = self.rng.choice(list(self.asked))
            del self.asked[number]
            self.count["aborted"] += 1
            if not self.engine.abort(number) and self.engine.abort(number):
                self.faults.append(f"request {number} was dropped twice")
        elif turn < 0.24:
            self.count["added"] += 1
            key = self.draw()
            prompt, decoder, sampling, seed = key
            try:
                made = self.engine.generate(prompt, decoder=decoder, sampling=sampling or None, seed=seed)
                self.finished("finished", key, made.tokens[0])
            except (Injected, torch.OutOfMemoryError):
                self.count["failed"] += 1
        elif turn < 0.25:
            self.count["added"] += 1
            key = self.draw()
            prompt, decoder, sampling, seed = key
            leave = self.rng.randrange(6)
            try:
                for i, update in enumerate(
                    self.engine.stream(prompt, decoder=decoder, sampling=sampling or None, seed=seed)
                ):
                    if update.kind == "final":
                        self.finished("finished", key, update.tokens)
                    elif i == leave:
                        self.count["aborted"] += 1
                        break
            except (Injected, torch.OutOfMemoryError):
                self.count["failed"] += 1
        else:
            for update in self.engine.step():
                self.told(update)

    def settle(self) -> None:
        """Step until nothing is under way, without faults, and look for what is left."""
        while self.engine.busy:
            for update in self.engine.step():
                self.told(update)
        held = self.engine.scheduler
        if self.asked:
            self.faults.append(f"{len(self.asked)} requests were never reported")
        if held.running or held.waiting or held.bytes or self.engine._requests or self.engine._claimed:
            self.faults.append("the engine still holds requests")
        if any(any(cache.used) for cache in self.engine.caches.values()):
            self.faults.append("rows of a cache are still lent")
        if self.count["added"] != sum(self.count[k] for k in ("finished", "failed", "aborted")):
            self.faults.append(f"added is not finished + failed + aborted: {dict(self.count)}")

    def run(self, requests: int) -> None:
        """Act until so many requests were added, then settle."""
        with self.injected():
            while self.count["added"] < requests and not self.faults:
                self.act()
        self.settle()

    def threads(self, requests: int, threads: int = 4) -> None:
        """`generate` from several threads while another steps what was added."""
        jobs = [self.draw() for _ in range(requests)]
        for job in jobs:
            self.reference(job)
        lock = threading.Lock()

        def work(own: list[tuple[Any, ...]]) -> None:
            for prompt, decoder, sampling, seed in own:
                try:
                    made = self.engine.generate(prompt, decoder=decoder, sampling=sampling or None, seed=seed)
                    with lock:
                        self.count["added"] += 1
                        self.finished("finished", (prompt, decoder, sampling, seed), made.tokens[0])
                except (Injected, torch.OutOfMemoryError):
                    with lock:
                        self.count["added"] += 1
                        self.count["failed"] += 1

        running = [threading.Thread(target=work, args=(jobs[i::threads],)) for i in range(threads)]
        with self.injected():
            for one in running:
                one.start()
            while any(one.is_alive() for one in running):
                for update in self.engine.step():
                    self.told(update)
            for one in running:
                one.join()
        self.settle()


def resident() -> float:
    """Anonymous memory of this process in MiB, swap included; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    lines = [line.split() for line in status.read_text().splitlines()]
    return sum(int(line[1]) for line in lines if line[0] in ("RssAnon:", "VmSwap:")) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=5000, help="requests to add")
    parser.add_argument("--seed", type=int, default=0, help="of what happens")
    parser.add_argument("--rate", type=float, default=0.02, help="share of forwards and images that fail")
    given = parser.parse_args()
    chaos, begun, memory = Chaos(given.seed, given.rate), time.perf_counter(), []
    parts = 10
    for part in range(1, parts + 1):
        chaos.run(given.requests * 9 * part // (10 * parts))
        memory.append(resident())
        print(f"{chaos.count['added']} requests, {memory[-1]:.0f} MiB, {time.perf_counter() - begun:.0f} s", flush=True)
        if chaos.faults:
            break
    chaos.threads(given.requests - chaos.count["added"])
    if chaos.count["added"] >= 1000 and memory[-1] > 1.05 * memory[len(memory) // 2]:
        chaos.faults.append(f"memory grew: {[round(m) for m in memory]} MiB")
    print(dict(chaos.count), f"memory {memory[0]:.0f} to {memory[-1]:.0f} MiB; {len(chaos.faults)} faults")
    for fault in chaos.faults:
        print(fault)
    return 1 if chaos.faults else 0


if __name__ == "__main__":
    sys.exit(main())
