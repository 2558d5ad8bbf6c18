"""Which steps of fixed shapes requests may need, told from those that rehearsals took, and their capture beforehand.

A rehearsal is one request alone. Together, requests take steps of more rows, of the keys of one and the tokens a row of
another, and of all that any of them needs: what `graph_key.key_of` makes of any batch of their feeds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import torch

from .cache import KVCache
from .graph_key import FEW, Drawing, Key, bucket, rows_for
from .graphs import made, more_bytes

LOG = logging.getLogger(__name__)


class Kind(NamedTuple):
    """What steps of all sizes have in common, see `Key`."""

    masked: bool
    logits: bool
    drawing: Drawing | None
    tree: bool
    keep: bool


class Sizes(NamedTuple):
    """Of the steps of a kind: tokens a row, keys, and the least rows."""

    widths: frozenset[int]
    keys: frozenset[int]
    rows: int


def kinds_of(keys: Iterable[Key]) -> dict[Kind, Sizes]:
    """The kinds of steps that single requests took, with all widths up to the largest that was seen: a feed has fewer
    tokens where a window ends, or where another seed rejects others. A kind that was wide alone stays so."""
    found: dict[Kind, Sizes] = {}
    for key in keys:
        kind = Kind(key.masked, key.logits, key.drawing, key.tree, key.keep)
        before = found.get(kind, Sizes(frozenset(), frozenset(), key.rows))
        found[kind] = Sizes(before.widths | {key.width}, before.keys | {key.keys}, min(before.rows, key.rows))
    for kind, sizes in found.items():
        least = min(sizes.widths)
        found[kind] = sizes._replace(widths=frozenset(powers(1 if least <= FEW else least, max(sizes.widths))))
    return found


def joined(a: Kind, b: Kind) -> Kind | None:
    """The kind of a step that serves feeds of two kinds; None where they never share one."""
    if (a.tree, a.keep) != (b.tree, b.keep):
        return None
    same = a.drawing == b.drawing
    logits = a.logits or b.logits or not same
    return Kind(a.masked or b.masked, logits, a.drawing if same else None, a.tree, a.keep)


def with_joined(alone: Mapping[Kind, Sizes]) -> dict[Kind, Sizes]:
    """Kinds, and those of the steps that several of them share, at the widths at which they do."""
    every, grew = dict(alone), True
    while grew:
        grew = False
        for (a, one), (b, other) in combinations(list(every.items()), 2):
            kind, widths = joined(a, b), one.widths & other.widths
            few = [w for w in one.widths | other.widths if w <= FEW]
            if min(one.widths) <= FEW and min(other.widths) <= FEW:
                widths = widths.union(few)
            if kind is None or not widths:
                continue
            before = every.get(kind, Sizes(frozenset(), frozenset(), one.rows + other.rows))
            after = Sizes(before.widths | widths, before.keys | one.keys | other.keys, before.rows)
            grew = grew or after != before
            every[kind] = after
    return every


def reachable(cache: KVCache, requests: int, tokens: int) -> list[Key]:
    """Keys of the steps that so many requests at a time may need of a cache, of few tokens a row first.

    Args:
        cache: with the steps that requests like these took alone.
        tokens: in one forward, of one branch.
    """
    alone = kinds_of(cache.steps)
    if not cache.layout.plain:
        tokens += tokens // cache.grid + requests  # the ends of rows, which are fed along
    # Rows of a request: one, or the two of a guided one.
    branches = max((sizes.rows for sizes in alone.values()), default=0)
    found = set()
    for kind, sizes in with_joined(alone).items():
        each = branches if kind.drawing is None else 1 + kind.drawing.params.guided
        for width in sizes.widths:
            # Of wide feeds, each is of more than half of the width.
            feeds = requests if width <= FEW else min(requests, max(1, tokens // (width // 2 + 1)))
            for rows in powers(sizes.rows, max(sizes.rows, each * feeds)):
                found |= {Key(rows_for(cache, rows), width, keys, *kind) for keys in sizes.keys}
    return sorted(found, key=lambda key: (key.width > FEW, key.rows * key.width, key.keys))


def capture_all(caches: Sequence[KVCache], requests: int, tokens: int) -> None:
    """Capture the steps that so many requests at a time may need, as far as there is room for them.

    Args:
        caches: on a GPU; as for `reachable`.
        requests, tokens: as for `reachable`.
    """
    wanted = [(cache, key) for cache in caches for key in reachable(cache, requests, tokens) if key not in cache.steps]
    wanted.sort(key=lambda pair: pair[1].width > FEW)
    captured = 0
    for cache, key in wanted:
        if more_bytes(cache, key) > room(cache):
            continue
        step = made(cache, key)
        if step is not None:
            cache.steps[key] = step
            step.prepare()
        if step is None or step.graph is None:
            break  # the device has no memory
        captured += 1
    LOG.info("captured %d CUDA graphs for up to %d requests at a time", captured, requests)
    if captured < len(wanted):
        LOG.warning(
            "there is no room for %d of %d CUDA graphs: requests that need them wait for a capture then, or run kernel "
            "by kernel; fewer requests at a time (max_running) or a larger kv_budget make room",
            len(wanted) - captured,
            len(wanted),
        )


def room(cache: KVCache) -> int:
    """Bytes that steps may take before anybody needs them: of the budget, and half of what is free on the device."""
    free = torch.cuda.mem_get_info(cache.device)[0] // 2
    return free if cache.room is None else min(free, cache.room())


def powers(first: int, last: int) -> list[int]:
    """Powers of two from the one at or below `first` on, up to the bucket of `last`."""
    return [1 << i for i in range(first.bit_length() - 1, bucket(last).bit_length())]
