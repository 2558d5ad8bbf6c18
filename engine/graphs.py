"""Forwards of fixed shapes over buffers of fixed addresses, which a CUDA graph can replay.

A step of one token is a hundred small kernels: on a GPU their launches take longer than their work. A `StaticStep` runs
every row of a cache, padded to a bucket of tokens and of keys, so that a handful of shapes serves a whole generation
and each is captured once. Padding writes nothing, attends to nothing, and is not returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from ..kernels.kv_write import OP as KV_WRITE
from ..kernels.kv_write.call import Call as Write
from ..kernels.verify_attention import OP as VERIFY_ATTENTION
from ..kernels.verify_attention.call import Call as Attention
from .batch import Feed
from .cache import KVCache, Lane
from .collapse import weigh
from .models.eagle import EagleDrafter
from .sampling import Logits

# Keys are counted in buckets of this many slots: attention is told of more keys than there are, and masks them.
KEYS = 256


def bucket(count: int) -> int:
    """The number of tokens a row that `count` is padded to: the next power of two."""
    return 1 << max(0, count - 1).bit_length()


def key_of(feeds: Sequence[Feed]) -> tuple[int, int, bool, bool] | None:
    """(tokens a row, keys, whether slots are masked, whether logits are wanted) of one step for all feeds.

    None: no step of a fixed shape serves them, for they feed a prefix, a draft tree or its drafter, are computed in a
    type of their own, or lie in more than one cache or bucket.
    """
    cache = feeds[0].lane.cache
    count = bucket(feeds[0].count)
    if isinstance(cache.model, EagleDrafter):
        return None
    for feed in feeds:
        if feed.tree is not None or feed.keep or feed.narrowed is not None:
            return None
        if feed.tokens is None or feed.lane.cache is not cache or bucket(feed.count) != count:
            return None
    last = max(max(feed.positions) for feed in feeds) + 1 + feeds[0].lane.cond_len
    keys = min(cache.slots, -(-last // KEYS) * KEYS)
    masked = any(feed.lane.valid is not None for feed in feeds)
    return count, keys, masked, any(len(feed.wanted()) for feed in feeds)


class StaticStep:
    """One forward of all rows of a cache at one shape.

    Args:
        cache: the keys and values; while it does not grow, their addresses stay.
        count: tokens a row.
        keys: slots that attention reads.
        masked: whether some slots may be invalid.
        logits: whether the output head runs.
    """

    def __init__(self, cache: KVCache, count: int, keys: int, masked: bool, logits: bool) -> None:
        device, rows = cache.device, len(cache.used)
        self.cache, self.count, self.keys, self.logits = cache, count, keys, logits
        self.tokens = torch.zeros(rows, count, dtype=torch.int64, device=device)
        self.slots = torch.full((rows, count), -1, dtype=torch.int64, device=device)
        self.counts = torch.zeros(rows, dtype=torch.int32, device=device)
        self.valid = torch.ones(rows, cache.slots, dtype=torch.bool, device=device) if masked else None
        self.extra = torch.zeros(rows, device=device) if cache.collapse else None
        self.everywhere: Tensor | None = None
        self.lanes: list[Lane] = []
        self.graph: torch.cuda.CUDAGraph | None = None
        self.out: Tensor | None = None

    def run(self, feeds: Sequence[Feed]) -> list[Logits | None]:
        """Run feeds, each of another lane, that `key_of` gave this step's key."""
        everywhere = feeds[0].lane.everywhere
        if self.everywhere is None and everywhere is not None:
            self.everywhere = everywhere.new_zeros(len(self.cache.used), *everywhere.shape[1:])
        if self.cache.device.type == "cuda" and self.graph is None:
            self.capture()
        self.fill(feeds)
        if self.graph is None:
            self.out = self.body()
        else:
            self.graph.replay()
        return [self.result(feed) for feed in feeds]

    def capture(self) -> None:
        """Record the step. Every row is still padding, so that nothing is written."""
        # Kernels are compiled, and libraries take their workspaces, before anything is recorded.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self.body()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.cache.graph_pool()):
            self.out = self.body()
        self.graph = graph

    def fill(self, feeds: Sequence[Feed]) -> None:
        """Write what the feeds say into the buffers; rows without a feed become padding."""
        # Slots and counts are made on the host: one copy each, whatever the number of feeds. The copies are from
        # pageable memory, which may be reused at once.
        rows = len(self.cache.used)
        slots = torch.full((rows, self.count), -1, dtype=torch.int64)
        counts = torch.zeros(rows, dtype=torch.int32)
        for feed in feeds:
            row = slice(feed.lane.first_row, feed.lane.first_row + feed.lane.branches)
            slots[row, : feed.count] = torch.tensor(feed.positions) + feed.lane.cond_len
            counts[row] = feed.count
            self.tokens[row, : feed.count] = cast(Tensor, feed.tokens)
            if self.valid is not None:
                self.valid[row] = True if feed.lane.valid is None else feed.lane.valid
        self.slots.copy_(slots)
        self.counts.copy_(counts)
        lanes = [feed.lane for feed in feeds]
        if lanes != self.lanes:
            for lane in lanes:
                row = slice(lane.first_row, lane.first_row + lane.branches)
                if self.everywhere is not None and lane.everywhere is not None:
                    self.everywhere[row] = lane.everywhere
                if self.extra is not None:
                    self.extra[row] = lane.extra
        self.lanes = lanes

    def body(self) -> Tensor | None:
        """Logits float32 [rows, count, V] from what the buffers hold; no step of it waits for the device."""
        model, position = self.cache.model, self.cache.position
        x = model.tok_embeddings(self.tokens)
        if position is not None:
            x = x + position[(self.slots - self.cache.cond_len).clamp(min=0)]
        if self.everywhere is not None:
            here = self.everywhere
            if here.shape[1] > 1:
                at = (self.slots - self.cache.cond_len).clamp(min=0)
                here = here.gather(1, at[..., None].expand(-1, -1, here.shape[-1]))
            x = x + here
        x = model.run(x, self.attend)
        return model.logits(x) if self.logits else None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write keys and values of all rows, then attend."""
        keys, values = self.cache.k[layer], self.cache.v[layer]
        q = KV_WRITE(Write(q, k, v, self.slots, self.cache.rotary, keys, values))
        o, lse = VERIFY_ATTENTION(
            Attention(
                q,
                keys,
                values,
                self.slots,
                self.valid,
                self.keys,
                counts=self.counts,
                return_lse=self.extra is not None,
            )
        )
        return o if self.extra is None else weigh(o, lse, values[:, 0], self.extra)

    def result(self, feed: Feed) -> Logits | None:
        """A copy of the logits that a feed asked for: the next run overwrites those of this one."""
        wanted = feed.wanted()
        if not len(wanted) or self.out is None:
            return None
        row = feed.lane.first_row
        if isinstance(wanted, range):
            both = self.out[row : row + feed.lane.branches, wanted.start : wanted.stop].clone()
        else:
            index = torch.tensor(wanted, device=self.out.device)
            both = self.out[row : row + feed.lane.branches, index]
        return Logits(both[0], both[1] if feed.lane.guided else None, self.cache.model.dtype)
