"""A request: one image to make, and what its decoder may ask of the engine while it makes it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from .cache import KVCache
from .events import Preview
from .family import Family
from .feed import Draw, Feed, Result
from .lane import Lane
from .runner import sample
from .sampling import Logits, Noise, Purpose, SamplingParams
from .stats import Recorder

# A part of a decoder's plan: it yields the feeds that it waits for and is sent their results.
Steps = Generator[list[Feed], list[Result], None]


def no_cache(grid: int) -> KVCache:
    """What a request has before a scheduler takes it."""
    raise RuntimeError(f"a request needs a scheduler before it can have a lane of the {grid}x{grid} grid")


@dataclass
class Request:
    """One image under way.

    Args:
        family: the models.
        features: condition features [1, cond_len, cond_dim], or [2, ...] with the unconditional branch.
        seed: of all its random numbers.
        sampling: how tokens are drawn.
        recorder: counts, times, progress.
        cache, drafter_cache: give the KV cache of a grid, of the AR model and of its drafter; the scheduler sets
            them.
        emit: told of every preview; the scheduler sets it.
        mask: bool [cond_len], prefix slots that may be seen; None is all.
    """

    family: Family
    features: Tensor
    seed: int
    sampling: SamplingParams
    recorder: Recorder = field(default_factory=Recorder)
    cache: Callable[[int], KVCache] = no_cache
    drafter_cache: Callable[[int], KVCache] = no_cache
    emit: Callable[[Preview], None] = lambda _: None
    lanes: list[Lane] = field(default_factory=list)
    mask: Tensor | None = None

    def lane(self, grid: int, drafter: bool = False) -> Lane:
        """Rows of the KV cache of a grid; the condition prefix, if the model has one, is yet to be fed."""
        lane = Lane((self.drafter_cache if drafter else self.cache)(grid), self.features, mask=self.mask)
        self.lanes.append(lane)
        return lane

    def noise(self, purpose: Purpose) -> Noise:
        """The random numbers of the request for a purpose."""
        return Noise(self.seed, self.family.ar.config.vocab_size, purpose, self.features.device)

    def draw(self, logits: Logits, noise: Noise, positions: Sequence[int]) -> Tensor:
        """Sample tokens int64 [n] from logits [n, V] at raster positions."""
        return sample(logits, [noise], [positions], self.sampling)

    def drawing(self, noise: Noise, positions: Sequence[int]) -> Draw:
        """What a feed needs to sample the tokens at these positions."""
        return Draw(noise, positions, self.sampling)

    def close(self) -> None:
        """Give all cache rows back."""
        while self.lanes:
            self.lanes.pop().close()


def prefix(lane: Lane) -> Generator[list[Feed], list[Result], Logits]:
    """Feed the condition prefix of a lane; returns the logits [1, V] of its first token.

    The unconditional branch is the same for every request of a family: its prefix is computed once a cache.
    """
    uncond: Tensor | None = None
    if lane.guided:
        if lane.null_key not in lane.cache.null:
            found = yield from prefill(lane.branch(1))
            lane.keep_null(found.cond)
        uncond = lane.take_null()
    found = yield from prefill(lane.branch(0))
    return Logits(found.cond, uncond, found.dtype)


def prefill(branch: Lane) -> Generator[list[Feed], list[Result], Logits]:
    """Feed the prefix of one branch; a collapsed one is run at once, it is no token of the cache."""
    if branch.cache.collapse:
        return Logits(branch.write_collapsed(), None, branch.cache.model.output.weight.dtype)
    [result] = yield [Feed(branch, None, role="prefill")]
    return logits_of(result)


def logits_of(result: Result) -> Logits:
    """The logits of a result that was asked for them."""
    if result.logits is None:
        raise RuntimeError("a feed that asked for logits returned none")
    return result.logits
