"""The one primitive: feed tokens of any requests at any slots in one forward, get logits for some of them.

A decoder says what it wants fed (`Feed`); the runner packs the feeds of all requests, whatever their decoders and
phases, so that the projections of a layer run once over all tokens. Attention runs once for each group of feeds that
have the same number of tokens and lie in adjacent rows of one cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from ..kernels.kv_write import OP as KV_WRITE
from ..kernels.kv_write.reference import rotate
from ..kernels.local_resample import local_resample
from ..kernels.verify_attention import OP as VERIFY_ATTENTION
from .collapse import weigh
from .feed import Feed, Result, Tree
from .models.eagle import EagleDrafter, Model
from .sampling import Logits, Noise, SamplingParams
from .static_step import StaticStep, key_of


class Group:
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
            self.start, self.kv_len = 0, cond_len
            self.slots = torch.arange(cond_len, device=self.device).expand(self.rows, -1)
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
                self.slots = self.spread([torch.tensor(f.positions, device=self.device) for f in self.feeds]) + cond_len
        # A collapsed prefix is one slot that counts for as many as it stands for.
        self.extra: Tensor | None = None
        if self.cache.collapse:
            self.extra = self.spread([f.lane.extra for f in self.feeds])

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
        self.at = self.spread([torch.tensor(f.positions, device=self.device) for f in self.feeds])
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
        return stacked.repeat_interleave(torch.tensor([f.lane.branches for f in self.feeds], device=self.device), dim=0)

    def _valid(self) -> Tensor | None:
        if all(f.lane.valid is None for f in self.feeds):
            return None
        ones = torch.ones(self.cache.slots, dtype=torch.bool, device=self.device)
        return self.spread([ones if f.lane.valid is None else f.lane.valid for f in self.feeds])

    def embed(self, model: Model) -> Tensor:
        """Embedded tokens [rows * count, dim], for a feature drafter fused with the features before them."""
        grid = self.cache.grid
        if self.feeds[0].tokens is None and not isinstance(model, EagleDrafter):
            return model.embed_prefix(torch.cat([f.lane.features for f in self.feeds]), grid).flatten(0, 1)
        table = self.cache.position
        tokens = torch.stack([f.tokens for f in self.feeds if f.tokens is not None])
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
        """Write keys and values, then attend: q, k, v [rows * count, H, D] -> [rows * count, H, D]."""
        keys, values = self.cache.rows(self.first_row, self.rows)[layer]
        narrowed, kept = q.dtype, keys.dtype
        if narrowed != kept:
            q, k, v = q.to(kept), k.to(kept), v.to(kept)
        shape = (self.rows, self.count, *q.shape[1:])
        q, k, v = q.view(shape), k.view(shape), v.view(shape)
        rotary = self.cache.rotary
        if self.turn is not None:
            q, k, rotary = rotate(q, self.turn), rotate(k, self.turn), None
        # The arguments of both ops fit by construction: they are called past their checks, which cost a fifth of a
        # step of one token.
        slots, start, with_lse = self.slots, self.start, self.extra is not None
        q = KV_WRITE(q, None, q, k, v, slots, rotary, keys, values, start)
        o, lse = VERIFY_ATTENTION(
            q, None, q, keys, values, slots, self.valid, self.kv_len, start, None, self.block, None, with_lse, None
        )
        if self.extra is not None:
            o = weigh(o, lse, values[:, 0], self.extra)
        return cast(Tensor, o).flatten(0, 1).to(narrowed)


def grouped(feeds: Sequence[Feed]) -> list[Group]:
    """Group feeds by cache, length and adjacency of rows."""
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
    return [Group(g) for g in groups]


def run(feeds: Sequence[Feed], static: bool | None = None) -> list[Result]:
    """Run feeds, each of another lane, and return a result for each, in order.

    Args:
        static: use steps of fixed shapes, which CUDA graphs replay; None is on a GPU only.
    """
    results: list[Result] = [Result(None, None)] * len(feeds)
    by_model: dict[tuple[int, torch.dtype | None], list[int]] = {}
    for i, feed in enumerate(feeds):
        by_model.setdefault((id(feed.lane.cache.model), feed.narrowed), []).append(i)
    for indices in by_model.values():
        part = [feeds[i] for i in indices]
        step = static_step(part, static)
        if step is None:
            found = forward(part[0].lane.cache.model, part)
        else:
            found = [Result(logits, None) for logits in step.run(part)]
        for i, result in zip(indices, found, strict=True):
            results[i] = result
    draw(feeds, results)
    return results


def static_step(feeds: Sequence[Feed], wanted: bool | None) -> StaticStep | None:
    """The step of a fixed shape that serves these feeds, if one does and is wanted."""
    cache = feeds[0].lane.cache
    if wanted is False or (wanted is None and cache.device.type != "cuda"):
        return None
    key = key_of(feeds)
    if key is None:
        return None
    if key not in cache.steps:
        cache.steps[key] = StaticStep(cache, *key)
    return cache.steps[key]


def forward(model: Model, feeds: Sequence[Feed]) -> list[Result]:
    """One forward of one model over all tokens of the feeds, which are computed in the same type."""
    groups = grouped(feeds)
    sizes = [g.rows * g.count for g in groups]
    embedded = [g.embed(model) for g in groups]
    x = (embedded[0] if len(embedded) == 1 else torch.cat(embedded))[None]
    if feeds[0].narrowed is not None:
        x = x.to(feeds[0].narrowed)
    for layer, block in enumerate(model.blocks):
        q, k, v = (t[0] for t in block.qkv(x))
        if len(groups) == 1:
            out = groups[0].attend(layer, q, k, v)
        else:
            parts = zip(groups, q.split(sizes), k.split(sizes), v.split(sizes), strict=True)
            out = torch.cat([g.attend(layer, *qkv) for g, *qkv in parts])
        x = block.finish(x, out[None])
    return select(model, groups, x[0], len(feeds))


def select(model: Model, groups: list[Group], hidden: Tensor, n: int) -> list[Result]:
    """Logits and features of the wanted tokens: the output head runs on those alone."""
    index: list[int] = []
    places: list[tuple[int, int, int, Feed]] = []
    at = 0
    for group in groups:
        for i, feed in zip(group.indices, group.feeds, strict=True):
            wanted = feed.wanted()
            places.append((i, len(index), len(wanted), feed))
            for _ in range(feed.lane.branches):
                index += [at + w for w in wanted]
                at += group.count
    found = [Result(None, None)] * n
    if not index:
        return found
    if len(index) < len(hidden):
        hidden = hidden[torch.tensor(index, device=hidden.device)]
    logits = model.logits(hidden)
    for i, begin, count, feed in places:
        if count:
            middle = begin + count
            uncond = logits[middle : middle + count] if feed.lane.guided else None
            both = Logits(logits[begin:middle], uncond, model.output.weight.dtype)
            branches = feed.lane.branches
            kept = hidden[begin : begin + branches * count].unflatten(0, (branches, count)) if feed.keep else None
            found[i] = Result(both, None, kept)
    return found


def draw(feeds: Sequence[Feed], results: list[Result]) -> None:
    """Sample for all feeds that ask for it, one call for each set of sampling parameters."""
    by_params: dict[tuple[SamplingParams, bool], list[int]] = {}
    for i, feed in enumerate(feeds):
        logits = results[i].logits
        if feed.draw is not None and logits is not None:
            by_params.setdefault((feed.draw.params, logits.uncond is None), []).append(i)
    for (params, _), indices in by_params.items():
        rows = [r.logits for r in (results[i] for i in indices) if r.logits is not None]
        draws = [d for d in (feeds[i].draw for i in indices) if d is not None]
        tokens = sample(Logits.cat(rows), [d.noise for d in draws], [d.positions for d in draws], params).split(
            [len(d.positions) for d in draws]
        )
        for i, drawn in zip(indices, tokens, strict=True):
            results[i] = replace(results[i], tokens=drawn)


def sample(
    logits: Logits, noises: Sequence[Noise], positions: Sequence[Sequence[int]], params: SamplingParams
) -> Tensor:
    """Tokens int64 [n] from logits [n, V], one request's noise and positions after the other."""
    gumbel = [noise.rows(where) for noise, where in zip(noises, positions, strict=True)]
    logits, params = params.prepare(logits, [p for where in positions for p in where])
    return local_resample(
        logits.cond,
        logits.uncond,
        gumbel[0] if len(gumbel) == 1 else torch.cat(gumbel),
        cfg_scale=params.cfg_scale,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
    )
