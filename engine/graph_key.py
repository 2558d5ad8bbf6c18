"""Which feeds share a step of a fixed shape, and what tells such steps apart.

A step computes so many rows of the cache as its feeds take, whichever those are: their numbers are among its inputs.
Rows, tokens a row and keys come in buckets, so that a handful of shapes serves a whole generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .batch import Feed
from .cache import KVCache
from .sampling import SamplingParams

# Keys are counted in buckets of at least this many slots, and in at most so many buckets: attention is told of more
# keys than there are, and masks them.
KEYS = 256
BUCKETS = 8
# Up to so many tokens a row the feeds of a cache may share a step, padded to the longest; longer ones, which are
# verifications, never do.
FEW = 16
# Ways to sample that are captured with the steps of a cache; whoever asks for yet another is sampled for behind them.
DRAWINGS = 4
# Tokens in a step, padding included, that take no longer than one does: reading the weights takes longer.
FREE = 256


def bucket(count: int) -> int:
    """The number of rows, or of tokens a row, that `count` is padded to: the next power of two."""
    return 1 << max(0, count - 1).bit_length()


class Drawing(NamedTuple):
    """How a step samples: the parameters and the purpose of the random numbers."""

    params: SamplingParams
    purpose: int


class Key(NamedTuple):
    """What tells the steps of a cache apart.

    Attributes:
        rows: rows of the cache that are computed.
        width: tokens a row.
        keys: slots that attention reads.
        masked: whether some slots may be invalid.
        logits: whether logits are returned.
        drawing: how the step samples, if it does.
        tree: whether the tokens are nodes of draft trees.
        keep: whether the features behind the tokens are returned.
    """

    rows: int
    width: int
    keys: int
    masked: bool
    logits: bool
    drawing: Drawing | None
    tree: bool = False
    keep: bool = False


def can_serve(feed: Feed) -> bool:
    """Whether steps of fixed shapes serve a feed: not of a prefix, nor in a type of its own."""
    return feed.tokens is not None and feed.narrowed is None


def parts(feeds: Sequence[Feed], indices: Sequence[int]) -> list[list[int]]:
    """Feeds that `can_serve` as those of one step each: of one cache and one kind, and long ones by their length.

    The feeds of a step lie in the order of their rows.
    """
    found: dict[tuple[int, bool, bool, int], list[int]] = {}
    for i in sorted(indices, key=lambda i: feeds[i].lane.first_row):
        feed, width = feeds[i], bucket(feeds[i].count)
        kind = (id(feed.lane.cache), feed.tree is not None, feed.keep, 0 if width <= FEW else width)
        found.setdefault(kind, []).append(i)
    return [part for together in found.values() for part in cut(feeds, together)]


def cut(feeds: Sequence[Feed], indices: list[int]) -> list[list[int]]:
    """Feeds of a kind as those of as many steps as it takes to compute at most twice what is needed, or `FREE` tokens.

    Short ones go apart from long ones first, then as many rows as fill a bucket from the others.
    """
    rows = sum(feeds[i].lane.branches for i in indices)
    widths = {bucket(feeds[i].count) for i in indices}
    needed = sum(feeds[i].lane.branches * feeds[i].count for i in indices)
    if bucket(rows) * max(widths) <= max(FREE, 2 * needed):
        return [indices]
    if len(widths) > 1:
        by_width = [[i for i in indices if bucket(feeds[i].count) == width] for width in sorted(widths)]
        return [part for together in by_width for part in cut(feeds, together)]
    full, first, taken = bucket(rows) // 2, 0, 0
    while taken + feeds[indices[first]].lane.branches <= full:
        taken += feeds[indices[first]].lane.branches
        first += 1
    return [indices[:first], *cut(feeds, indices[first:])]


def key_buckets(slots: int) -> list[int]:
    """The numbers of keys that attention over a cache of so many slots is told of, ascending."""
    unit = max(KEYS, -(-slots // (BUCKETS * KEYS)) * KEYS)
    return [*range(unit, slots, unit), slots]


def rows_for(cache: KVCache, rows: int) -> int:
    """The rows of the step that computes so many rows of a cache: a bucket of them, or all; pairs stay whole."""
    every = len(cache.used) + len(cache.used) % 2
    return min(every, bucket(rows))


def key_of(feeds: Sequence[Feed]) -> Key:
    """The key of the step for the feeds of one of the `parts`."""
    cache = feeds[0].lane.cache
    rows = rows_for(cache, sum(feed.lane.branches for feed in feeds))
    width = bucket(max(feed.count for feed in feeds))
    # The nodes of a tree are found by their mask, the keys before them by their slots.
    ends = [max(feed.positions) + 1 if feed.tree is None else feed.tree.start for feed in feeds]
    last = max(1, max(ends) + cache.cond_len)
    keys = next(keys for keys in key_buckets(cache.slots) if keys >= last)
    masked = any(feed.lane.valid is not None for feed in feeds)
    drawing = drawing_of(feeds)
    if drawing not in cache.drawings and len(cache.drawings) >= DRAWINGS:
        drawing = None
    wanted = drawing is None and any(len(feed.wanted()) for feed in feeds)
    return Key(rows, width, keys, masked, wanted, drawing, feeds[0].tree is not None, feeds[0].keep)


def drawing_of(feeds: Sequence[Feed]) -> Drawing | None:
    """How to sample for all feeds, if that is one way, and all tokens stay in the memory of the lanes."""
    found: Drawing | None = None
    for feed in feeds:
        draw = feed.draw
        if draw is None or draw.into is not feed.lane.tokens or feed.lane.memory is not feed.lane.cache.tokens:
            return None
        if draw.noise.lean is not None:
            return None
        here = Drawing(draw.params, int(draw.noise.purpose))
        if found not in (None, here) or draw.params.guided != feed.lane.guided:
            return None
        found = here
    return found
