"""A request: one image to make, what its decoder may ask of the engine meanwhile, and what it reports."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .batch import Draw, Feed, Result
from .cache import KVCache, Lane
from .family import Family
from .runner import sample
from .sampling import Logits, Noise, Purpose, SamplingParams
from .stats import GenerationStats, Recorder

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Outcome:
    """What a plan ends with: tokens int64 [H, W]; shares rejected and resampled, islands and depth if it verified;
    tokens that a verification of a draft tree brought; which tokens were resampled and which of them had fallen
    below tau, bool [H, W], if candidates were verified.
    """

    tokens: Tensor
    rejection: float | None = None
    coverage: float | None = None
    islands: int | None = None
    depth: int | None = None
    accepted: float | None = None
    resampled: Tensor | None = None
    rejected: Tensor | None = None


# How a decoder makes one image: a generator that yields the feeds that it waits for and is sent their results.
Plan = Generator[list[Feed], list[Result], Outcome]
# A part of a plan.
Steps = Generator[list[Feed], list[Result], None]


@dataclass(frozen=True)
class Update:
    """What became of a request, as `Engine.step` and `Engine.stream` report it.

    Attributes:
        request: its number.
        kind: "draft" (the draft as a small image), "level" (a whole grid of a cascade), "band" (verified rows of the
            target grid), "final", or "failed".
        image: the image of `tokens`.
        tokens: int64 [h, W] on the CPU.
        row: number of the first row of tokens.
        stats: of a final image.
        resampled: of a final image, see `GenerationResult`; bool [H, W] on the CPU.
        error: why a request failed; the others are unharmed.
        rejected: of a final image, bool [H, W] on the CPU: the tokens that fell below tau, where `resampled` is given.
    """

    request: int
    kind: str
    image: Image | None = None
    tokens: Tensor | None = None
    row: int = 0
    stats: GenerationStats | None = None
    error: Exception | None = None
    resampled: Tensor | None = None
    rejected: Tensor | None = None


def no_cache(grid: int) -> KVCache:
    """What a request has before a scheduler takes it."""
    raise RuntimeError(f"a request needs a scheduler before it can have a lane of the {grid}x{grid} grid")


@dataclass(eq=False)
class Request:
    """One image under way.

    Args:
        family: the models.
        features: condition features [1, cond_len, cond_dim], or [2, ...] with the unconditional branch.
        seed: of all its random numbers.
        sampling: how tokens are drawn.
        recorder: counts, times, progress.
        mask: bool [cond_len], prefix slots that may be seen; None is all.
        previews: whether to report what is worth showing before the end; a number is how much of it is still wanted.
        cache, drafter_cache: give the KV cache of a grid, of the AR model and of its drafter; the scheduler sets them.

    The other attributes are the scheduler's: the number, the plan, the bytes of cache that it may hold and in which
    caches (grid, whether it is the feature drafter's); the feeds that the plan waits for, and what is there of their
    results; the updates that are not reported yet, and the rows that are. `last` is the engine's: the tokens and the
    image of the latest preview.
    """

    family: Family
    features: Tensor
    seed: int
    sampling: SamplingParams
    recorder: Recorder = field(default_factory=Recorder)
    mask: Tensor | None = None
    previews: bool | int = True
    cache: Callable[[int], KVCache] = no_cache
    drafter_cache: Callable[[int], KVCache] = no_cache
    lanes: list[Lane] = field(default_factory=list)
    number: int = 0
    bytes: int = 0
    holds: tuple[tuple[int, bool], ...] = ()
    plan: Plan | None = None
    pending: list[Feed] | None = None
    results: list[Result] = field(default_factory=list)
    parts: dict[int, Logits] = field(default_factory=dict)
    fed: int = 0
    updates: list[Update] = field(default_factory=list)
    rows_shown: int = 0
    last: tuple[Tensor, Image] | None = None

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

    def drawing(self, noise: Noise, positions: Sequence[int], into: Tensor | None = None) -> Draw:
        """What a feed needs to sample the tokens at these positions, and to put them into tokens [N]."""
        return Draw(noise, positions, self.sampling, into)

    def show(self, kind: str, tokens: Tensor, row: int = 0) -> None:
        """Report tokens [h, W] from a row on, if previews are wanted."""
        if self.previews:
            if self.previews is not True:
                self.previews -= 1
            self.updates.append(Update(self.number, kind, tokens=tokens.clone(), row=row))

    def show_rows(self, tokens: Tensor, side: int, decided: int) -> None:
        """Report the new rows of tokens [side * side] of which the first `decided` are, as bands: each row, or bands of
        about equal height where a number of previews is wanted. The last rows are the image's."""
        if not self.previews:
            return
        rows, top = decided // side, self.rows_shown
        least = 1 if self.previews is True else -(-(side - top) // (self.previews + 1))
        if rows < side and rows - top >= least:
            self.rows_shown = rows
            self.show("band", tokens.view(side, side)[top:rows], top)

    def shown(self, tokens: Tensor) -> Image | None:
        """The image of these tokens if the latest preview was just that: a last band may be the whole image."""
        if self.last is None or not torch.equal(self.last[0], tokens):
            return None
        return self.last[1]

    @property
    def ready(self) -> bool:
        """Whether everything that the plan waits for is there."""
        return self.pending is None or len(self.results) == len(self.pending)

    def next(self, limit: int) -> Feed:
        """The next feed, or the next `limit` tokens of it."""
        feed = (self.pending or [])[len(self.results)]
        if feed.tokens is None or not isinstance(feed.positions, range) or not isinstance(feed.logits, str):
            return feed
        stop = min(feed.count, self.fed + limit)
        if self.fed == 0 and stop == feed.count:
            return feed
        last, own = stop == feed.count, feed.sources is None
        return replace(
            feed,
            tokens=feed.tokens[self.fed : stop] if own else feed.tokens,
            sources=None if feed.sources is None else feed.sources[self.fed : stop],
            positions=feed.positions[self.fed : stop],
            logits=feed.logits if last or feed.logits == "all" else "none",
            draw=feed.draw if last else None,
        )

    def take(self, feed: Feed, result: Result) -> None:
        """Take the result of what `next` gave."""
        whole = (self.pending or [])[len(self.results)]
        self.recorder.forward(feed.role, feed.count)
        if result.logits is not None:
            self.parts[self.fed] = result.logits
        self.fed += feed.count
        if self.fed >= whole.count:
            logits = Logits.cat(list(self.parts.values())) if self.parts else None
            self.parts, self.fed = {}, 0
            self.results.append(replace(result, logits=logits))

    def advance(self) -> Outcome | None:
        """Send the results to the plan and take its next feeds; the outcome when it is done."""
        if self.plan is None:
            raise RuntimeError("a request needs a plan before it can advance")
        results, self.results = self.results, []
        try:
            self.pending = next(self.plan) if self.pending is None else self.plan.send(results)
        except StopIteration as stop:
            if not isinstance(stop.value, Outcome):
                raise TypeError(f"a plan must end with an Outcome, this one ended with {stop.value!r}") from None
            return stop.value
        return None

    def final(self, outcome: Outcome) -> Update:
        """The last update, with statistics."""
        stats = self.recorder.stats
        for name in ("rejection", "coverage", "islands", "depth", "accepted"):
            setattr(stats, name, getattr(outcome, name))
        return Update(
            self.number,
            "final",
            tokens=outcome.tokens,
            stats=stats,
            resampled=outcome.resampled,
            rejected=outcome.rejected,
        )

    def close(self) -> None:
        """End the plan and give all cache rows back."""
        if self.plan is not None:
            self.plan.close()
        while self.lanes:
            self.lanes[-1].close()
            self.lanes.pop()


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
        return Logits(branch.write_collapsed(), None, branch.cache.model.dtype)
    [result] = yield [Feed(branch, None, role="prefill")]
    return logits_of(result)


def logits_of(result: Result) -> Logits:
    """The logits of a result that was asked for them."""
    if result.logits is None:
        raise RuntimeError("a feed that asked for logits returned none")
    return result.logits
