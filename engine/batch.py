"""What a decoder asks of the runner and what it gets (`Feed`, `Result`), and feeds that attend together (`Batch`)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ..kernels.kv_write import OP as KV_WRITE
from ..kernels.kv_write.call import Call as Write
from ..kernels.kv_write.reference import rotate
from ..kernels.verify_attention import OP as VERIFY_ATTENTION
from ..kernels.verify_attention.call import Call as Attention
from .cache import Lane
from .collapse import weigh
from .devices import upload
from .models.eagle import EagleDrafter, Model
from .sampling import Logits, Noise, SamplingParams


@dataclass(frozen=True)
class Draw:
    """Sample a token from each of the logits that a feed returns.

    Args:
        noise: of the request and the purpose.
        positions: raster positions of the tokens to sample, one for each row of logits.
        params: how.
        into: int64 [N], where the tokens are put at their positions, instead of returning them and their logits. Best
            the lane's own `tokens`: steps that a CUDA graph replays write these themselves.
    """

    noise: Noise
    positions: Sequence[int]
    params: SamplingParams
    into: Tensor | None = None


@dataclass(frozen=True)
class Tree:
    """Where the tokens of a draft tree lie, and what they see of one another.

    Args:
        start: raster position whose slot holds the first token; the others lie behind it, wherever in the picture they
            belong. All of them see everything before it.
        block: int32 [n, ceil(n / 32)], see `kernels.masks.pack`.
    """

    start: int
    block: Tensor


@dataclass(frozen=True)
class Feed:
    """Tokens of one lane to run through the model; their keys and values overwrite what stood at their slots.

    Args:
        lane: whose.
        tokens: int64 [n], or None for the condition prefix, which every lane is fed first; with `sources`, int64 [N].
        positions: raster positions of the tokens; a `range` of step 1 needs no mask.
        logits: "all" for the logits that follow each token, "last" for those after the last one, "none" to write the
            cache only, or the indices of the tokens whose logits are wanted.
        role: what the tokens are counted as.
        draw: sample from the logits in the same call.
        tree: the tokens are nodes of a draft tree; `positions` may then repeat.
        features: for a feature drafter, [branches, n, dim], what came before each token.
        keep: return the features behind the wanted tokens too.
        dtype: type of the layers' activations and weights for these tokens; None is the model's own. Keys and values
            stay in the cache's.
        sources: which of `tokens` are fed, by raster position.
        ends: positions out of `positions` of which nothing is known but that they end a row: the row end behind them is
            fed alone, in layouts that have one.
    """

    lane: Lane
    tokens: Tensor | None
    positions: Sequence[int] = range(0)
    logits: str | Sequence[int] = "all"
    role: str = "serial"
    draw: Draw | None = None
    tree: Tree | None = None
    features: Tensor | None = None
    keep: bool = False
    dtype: torch.dtype | None = None
    sources: Sequence[int] | None = None
    ends: Collection[int] = ()

    def values(self) -> Tensor:
        """The tokens int64 [n] that are fed."""
        tokens, sources = cast(Tensor, self.tokens), self.sources
        if sources is None:
            return tokens
        return tokens[span(sources) or upload(sources, tokens.device)]

    @property
    def held(self) -> bool:
        """Whether the tokens lie in the memory of the lane, which steps of fixed shapes read."""
        lane = self.lane
        return self.sources is not None and self.tokens is lane.tokens and lane.memory is lane.cache.tokens

    @property
    def narrowed(self) -> torch.dtype | None:
        """The type that differs from the cache's, if one was asked for."""
        return None if self.dtype == self.lane.cache.k[0].dtype else self.dtype

    @property
    def count(self) -> int:
        """Number of tokens fed."""
        return self.lane.cond_len - self.lane.skip if self.tokens is None else len(self.positions)

    def wanted(self) -> Sequence[int]:
        """Indices of the tokens whose logits are wanted."""
        if self.tokens is None or self.logits == "last":
            return [self.count - 1]
        if isinstance(self.logits, str):
            return range(self.count) if self.logits == "all" else []
        return self.logits


def span(positions: Sequence[int]) -> slice | None:
    """Positions as a slice, if they follow one another."""
    if isinstance(positions, range) and positions.step == 1:
        return slice(positions.start, positions.stop)
    return slice(positions[0], positions[0] + 1) if len(positions) == 1 else None


@dataclass(frozen=True)
class Result:
    """Logits float32 [n, V] of both branches, the tokens int64 [n] drawn from them, and the features [branches, n, dim]
    that they were read from; None where not asked for."""

    logits: Logits | None
    tokens: Tensor | None
    features: Tensor | None = None


class Batch:
    """Feeds of the same length in adjacent rows of one cache."""

    def __init__(self, feeds: list[tuple[int, Feed]]) -> None:
        self.indices = [i for i, _ in feeds]
        self.feeds = [f for _, f in feeds]
        first = self.feeds[0]
        self.cache, self.count = first.lane.cache, first.count
        self.rows = sum(f.lane.branches for f in self.feeds)
        self.first_row = first.lane.first_row
        self.device = first.lane.features.device
        cond_len = first.lane.cond_len
        self.start: int | None = None
        self.valid = self._valid()
        self.at: Tensor | None = None
        self.turn: Tensor | None = None
        self.block: Tensor | None = None
        if first.tree is not None:
            self._place([f.tree for f in self.feeds if f.tree is not None])
        elif first.tokens is None:
            self.start, self.kv_len = first.lane.skip, cond_len
            self.slots = torch.arange(self.start, cond_len, device=self.device).expand(self.rows, -1)
        else:
            starts = {f.positions.start if isinstance(f.positions, range) else None for f in self.feeds}
            if len(starts) == 1 and None not in starts:
                self.start = starts.pop()
            if self.start is not None:
                self.start += cond_len
                self.kv_len = self.start + self.count
                self.slots = torch.arange(self.start, self.kv_len, device=self.device).expand(self.rows, -1)
            else:
                self.kv_len = max(max(f.positions) for f in self.feeds) + 1 + cond_len
                self.slots = self.spread([upload(f.positions, self.device) for f in self.feeds]) + cond_len
        # A collapsed prefix is one slot that counts for as many as it stands for.
        self.extra: Tensor | None = None
        if self.cache.collapse:
            self.extra = self.cache.extra[self.first_row : self.first_row + self.rows]

    def _place(self, trees: list[Tree]) -> None:
        """Slots, visibility and rotation of draft trees: a node turns by its position, not by its slot."""
        cond_len, cache = self.feeds[0].lane.cond_len, self.cache
        starts = [t.start + cond_len for t in trees]
        if len(set(starts)) == 1:
            self.start = starts[0]
        self.kv_len = max(starts)
        each = torch.arange(self.count, device=self.device)
        self.slots = self.spread([each + s for s in starts])
        self.block = self.spread([t.block for t in trees])
        self.at = self.spread([upload(f.positions, self.device) for f in self.feeds])
        self.turn = None if cache.rotary is None else cache.rotary[self.at + cond_len]
        if self.start is None:
            committed = torch.arange(cache.slots, device=self.device) < self.slots[:, :1]
            self.valid = committed if self.valid is None else committed & self.valid

    def spread(self, each: Sequence[Tensor]) -> Tensor:
        """Stack one tensor a feed and repeat it for each of its branches: [rows, ...]."""
        stacked = torch.stack(list(each))
        branches = {f.lane.branches for f in self.feeds}
        if len(branches) == 1:
            return stacked.repeat_interleave(branches.pop(), dim=0)
        counts = [f.lane.branches for f in self.feeds]
        return stacked.repeat_interleave(upload(counts, self.device), dim=0, output_size=sum(counts))

    def _valid(self) -> Tensor | None:
        if all(f.lane.valid is None for f in self.feeds):
            return None
        ones = torch.ones(self.cache.slots, dtype=torch.bool)
        each = [ones if f.lane.valid is None else f.lane.valid for f in self.feeds]
        if any(valid.dim() > 1 for valid in each):  # the branches of a lane see different slots
            pairs = zip(self.feeds, each, strict=True)
            return torch.cat([valid.expand(f.lane.branches, -1) for f, valid in pairs]).to(self.device)
        if self.device.type == "cuda":
            each = list(torch.stack(each).pin_memory().to(self.device, non_blocking=True))
        return self.spread(each)

    def embed(self, model: Model) -> Tensor:
        """Embedded tokens [rows * count, dim], for a feature drafter fused with the features before them."""
        grid = self.cache.grid
        if self.feeds[0].tokens is None and not isinstance(model, EagleDrafter):
            features = torch.cat([f.lane.features for f in self.feeds])
            return model.embed_prefix(features, grid)[:, self.feeds[0].lane.skip :].flatten(0, 1)
        table = self.cache.position
        tokens = torch.stack([f.values() for f in self.feeds if f.tokens is not None])
        cond_len = self.feeds[0].lane.cond_len
        x = self.spread(list(model.tok_embeddings(tokens)))
        if table is not None:
            if self.at is not None:
                x += table[self.at]
            elif self.start is not None:
                x += table[self.start - cond_len : self.kv_len - cond_len]
            else:
                x += table[self.slots - cond_len]
        everywhere = [f.lane.everywhere for f in self.feeds]
        if everywhere[0] is not None:
            x = x + self.here(torch.cat([e for e in everywhere if e is not None]))
        if isinstance(model, EagleDrafter):
            x = model.fused(torch.cat([f.features for f in self.feeds if f.features is not None]), x)
        return x.flatten(0, 1)

    def here(self, everywhere: Tensor) -> Tensor:
        """What the tokens of the feeds are given, of what every position is: [rows, 1 or N, dim] -> [rows, n, dim]."""
        if everywhere.shape[1] == 1:
            return everywhere
        at = self.slots - self.feeds[0].lane.cond_len if self.at is None else self.at
        return everywhere.gather(1, at[..., None].expand(-1, -1, everywhere.shape[-1]))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write keys and values, then attend: q [1, rows * count, H, D], k, v [1, rows * count, Hkv, D] -> like q."""
        keys, values = self.cache.rows(self.first_row, self.rows)[layer]
        narrowed, kept = q.dtype, keys.dtype
        if narrowed != kept:
            q, k, v = q.to(kept), k.to(kept), v.to(kept)
        rows = (self.rows, self.count)
        q, k, v = q.view(*rows, *q.shape[2:]), k.view(*rows, *k.shape[2:]), v.view(*rows, *v.shape[2:])
        rotary = self.cache.rotary
        if self.turn is not None:
            q, k, rotary = rotate(q, self.turn), rotate(k, self.turn), None
        # The arguments of both ops fit by construction: they are called past their checks, which cost a fifth of a
        # step of one token.
        slots, start, with_lse = self.slots, self.start, self.extra is not None
        q = KV_WRITE(Write(q, k, v, slots, rotary, keys, values, start))
        o, lse = VERIFY_ATTENTION(
            Attention(q, keys, values, slots, self.valid, self.kv_len, start, block=self.block, return_lse=with_lse)
        )
        if self.extra is not None:
            o = weigh(o, lse, values[:, 0], self.extra)
        return cast(Tensor, o).flatten(0, 1)[None].to(narrowed)


def grouped(feeds: Sequence[Feed]) -> list[Batch]:
    """Batches of feeds, by cache, length and adjacency of rows."""
    order = sorted(range(len(feeds)), key=lambda i: (id(feeds[i].lane.cache), feeds[i].count, feeds[i].lane.first_row))
    groups: list[list[tuple[int, Feed]]] = []
    for i in order:
        feed = feeds[i]
        if groups:
            last = groups[-1][-1][1]
            if (
                last.lane.cache is feed.lane.cache
                and last.count == feed.count
                and (last.tokens is None) == (feed.tokens is None)
                and (last.tree is None) == (feed.tree is None)
                and last.lane.first_row + last.lane.branches == feed.lane.first_row
            ):
                groups[-1].append((i, feed))
                continue
        groups.append([(i, feed)])
    return [Batch(g) for g in groups]
