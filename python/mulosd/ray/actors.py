"""Engines of a batch as actors of Ray: one that dies costs its unfinished images, which another one draws.

Images come back as bytes: the process that began the batch writes them, so machines share no folder.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from ..batch.painter import Drawn, Painters, Prepared, Recipe
from ..cli.jobs import Job
from ..cli.prompt_list import Asked

# Images that an actor is given at a time, for each that its engine draws at a time: the engine runs low at their end.
ROUNDS = 8
# How often an image may be what an actor drew alone when it died.
TRIES = 3
# Actors in a row that may die before they are ready.
FAILED_STARTS = 3
# Seconds after which it is told that the cluster has no room.
PATIENCE = 30.0


class Actor:
    """An engine in a process of its own; `open` makes it, so that what it cannot do is told as an exception."""

    def __init__(self) -> None:
        self.painter: Any = None

    def open(self, make: Callable[[Recipe], Painters], recipe: Recipe) -> None:
        self.painter = make(recipe)

    def prepare(self, asked: Sequence[Asked]) -> list[Prepared]:
        found: list[Prepared] = self.painter.prepare(asked)
        return found

    def draw(self, jobs: Sequence[Job]) -> Generator[Drawn, None, None]:
        yield from self.painter.draw(jobs)


def engine_of(recipe: Recipe) -> Painters:
    """What an actor draws with."""
    from ..batch.painter import Painter

    return Painter(recipe)


@dataclass(eq=False)
class Part:
    """Jobs, by number, that are drawn by one call of an actor.

    Attributes:
        left: those of them that have not ended.
        deaths: of actors that had them.
    """

    numbers: list[int]
    deaths: int = 0
    left: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.left = set(self.numbers)

    def again(self) -> list[Part]:
        """What is left of it, in halves: an image that kills its actor is alone before long."""
        left = [number for number in self.numbers if number in self.left]
        if len(left) < 2:
            return [Part(left, self.deaths + 1)] if left else []
        half = len(left) // 2
        return [Part(left[:half]), Part(left[half:])]


class Actors:
    """A pool of actors, each with an engine; a context manager that begins and ends them.

    Args:
        recipe: of the batch.
        address: of a cluster ("auto" is that of this machine); None begins one for as long as this lasts.
        count: actors; None is as many as the cluster has room for.
        gpus: of each actor; None is 1 where the recipe's device is a GPU.
        cpus: of each actor.
        tell: told in words of actors that die.
        make: what an actor draws with.

    Raises:
        ValueError: the family, or a setting, cannot be.
        ConnectionError: there is no cluster at the address.
        ChildProcessError: actors die before they are ready.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        address: str | None = None,
        count: int | None = None,
        gpus: float | None = None,
        cpus: float = 1,
        tell: Callable[[str], None] = lambda text: None,
        make: Callable[[Recipe], Painters] = engine_of,
    ) -> None:
        self.recipe, self.address, self.tell, self.make = recipe, address, tell, make
        self.gpus = gpus if gpus is not None else float(recipe.device.startswith("cuda"))
        self.cpus, self._count = cpus, count
        self._began = False
        self._failed_starts = 0
        self._idle: list[Any] = []
        self._opening: dict[Any, Any] = {}

    def __enter__(self) -> Actors:
        if not ray.is_initialized():
            # A cluster that is begun here tells nobody of it.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(self.address or "local", logging_level=logging.WARNING, log_to_driver=False)
            self._began = True
        try:
            for _ in range(self._count or self._room()):
                self._start()
            while not self._idle:
                self._opened(PATIENCE)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for actor in [*self._idle, *self._opening.values()]:
            ray.kill(actor)
        self._idle, self._opening = [], {}
        if self._began:
            ray.shutdown()
            self._began = False

    def _room(self) -> int:
        """How many actors the cluster has room for, at least one."""
        there = ray.cluster_resources()
        by_gpu = int(there.get("GPU", 0) // self.gpus) if self.gpus else None
        by_cpu = int(there.get("CPU", 0) // self.cpus) if self.cpus else None
        return max(1, min(found for found in (by_gpu, by_cpu, 1024) if found is not None))

    def _start(self) -> None:
        actor: Any = ray.remote(Actor).options(num_cpus=self.cpus, num_gpus=self.gpus, max_restarts=0).remote()
        self._opening[actor.open.remote(self.make, self.recipe)] = actor

    def _opened(self, seconds: float) -> None:
        """Wait for an actor that begins."""
        ready, _ = ray.wait(list(self._opening), timeout=seconds)
        for begun in ready:
            self._note(begun)
        if not ready:
            there = {name: n for name, n in ray.cluster_resources().items() if name in ("CPU", "GPU")}
            self.tell(
                f"no actor has begun for {seconds:.0f} s: each needs {self.cpus:g} CPUs and {self.gpus:g} GPUs, "
                f"the cluster has {there}"
            )

    def _note(self, begun: Any) -> None:
        """Take an actor that has begun, or replace one that died; errors of the recipe are raised as they are."""
        actor = self._opening.pop(begun)
        try:
            ray.get(begun)
        except RayActorError as error:
            self._failed_starts += 1
            if self._failed_starts >= FAILED_STARTS:
                raise ChildProcessError(f"{FAILED_STARTS} actors died before they were ready: {why(error)}") from error
            self._start()
        except RayTaskError as error:
            raise error.cause from error
        else:
            self._failed_starts = 0
            self._idle.append(actor)

    def prepare(self, asked: Sequence[Asked]) -> list[Prepared]:
        """What each line comes to."""
        try:
            found: list[Prepared] = ray.get(self._idle[0].prepare.remote(asked))
        except RayTaskError as error:
            raise error.cause from error
        return found

    def draw(self, jobs: Sequence[Job]) -> Generator[Drawn, None, None]:
        """The end of every job, in the order in which they end."""
        waiting = deque(self._parts(len(jobs)))
        running: dict[Any, tuple[Any, Part]] = {}
        try:
            while waiting or running:
                while waiting and self._idle:
                    actor, part = self._idle.pop(), waiting.popleft()
                    stream = actor.draw.options(num_returns="streaming").remote([jobs[i] for i in part.numbers])
                    running[stream] = (actor, part)
                ready: list[Any] = ray.wait([*running, *self._opening], timeout=PATIENCE)[0]
                for one in ready:
                    if one in self._opening:
                        self._note(one)
                        continue
                    actor, part = running[one]
                    try:
                        drawn: Drawn = ray.get(next(one))
                    except StopIteration:
                        del running[one]
                        self._idle.append(actor)
                    except RayActorError as error:
                        del running[one]
                        yield from self._died(part, waiting, why(error))
                    except RayTaskError as error:
                        raise error.cause from error
                    else:
                        number = part.numbers[drawn.number]
                        part.left.discard(number)
                        yield Drawn(number, drawn.data, drawn.stats, drawn.error)
        finally:
            self._opening.update((stream, actor) for stream, (actor, _) in running.items())

    def _parts(self, count: int) -> list[Part]:
        """Numbers of jobs in parts, so small that no actor waits long for another at the end."""
        actors = len(self._idle) + len(self._opening)
        most = max(1, min(ROUNDS * self.recipe.under_way, -(-count // (2 * actors))))
        return [Part(list(range(i, min(count, i + most)))) for i in range(0, count, most)]

    def _died(self, part: Part, waiting: deque[Part], cause: str) -> Generator[Drawn, None, None]:
        """Replace an actor that died; what it had is drawn by others, or has failed when it was alone too often."""
        left = part.again()
        self.tell(f"an actor died ({cause}); {len(part.left)} images are drawn by another")
        self._start()
        for one in left:
            if one.deaths >= TRIES:
                yield Drawn(one.numbers[0], error=f"{TRIES} actors died while they drew this image alone: {cause}")
            else:
                waiting.appendleft(one)


def why(error: RayActorError) -> str:
    """Why an actor died, in one line."""
    text = " ".join(str(error).split())
    found = text.partition("Worker exit detail:")[2].partition(". Some common causes")[0].strip()
    return found or text[:200]
