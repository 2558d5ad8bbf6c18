"""The one primitive: feed tokens of any requests at any slots in one forward, get logits for some of them.

A decoder says what it wants fed (`Feed`); the runner packs the feeds of all requests, whatever their decoders and
phases, so that the projections of a layer run once over all tokens. Attention runs once for each group of feeds that
have the same number of tokens and lie in adjacent rows of one cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.kv_write import kv_write
from ..kernels.local_resample import local_resample
from ..kernels.verify_attention import verify_attention
from .collapse import weigh
from .lane import Lane
from .models.ar_model import ARModel
from .sampling import Logits, Noise, SamplingParams


@dataclass(frozen=True)
class Draw:
    """Sample a token from each of the logits that a feed returns.

    Args:
        noise: of the request and the purpose.
        positions: raster positions of the tokens to sample, one for each row of logits.
        params: how.
    """

    noise: Noise
    positions: Sequence[int]
    params: SamplingParams


@dataclass(frozen=True)
class Feed:
    """Tokens of one lane to run through the model; their keys and values overwrite what stood at their slots.

    Args:
        lane: whose.
        tokens: int64 [n], or None for the condition prefix, which every lane is fed first.
        positions: raster positions of the tokens; a `range` of step 1 needs no mask.
        logits: "all" for the logits that follow each token, "last" for those after the last one, "none" to write the
            cache only, or the indices of the tokens whose logits are wanted.
        role: what the tokens are counted as.
        draw: sample from the logits in the same call.
    """

    lane: Lane
    tokens: Tensor | None
    positions: Sequence[int] = range(0)
    logits: str | Sequence[int] = "all"
    role: str = "serial"
    draw: Draw | None = None

    @property
    def count(self) -> int:
        """Number of tokens fed."""
        return self.lane.cond_len if self.tokens is None else len(self.positions)

    def wanted(self) -> Sequence[int]:
        """Indices of the tokens whose logits are wanted."""
        if self.tokens is None or self.logits == "last":
            return [self.count - 1]
        if isinstance(self.logits, str):
            return range(self.count) if self.logits == "all" else []
        return self.logits


@dataclass(frozen=True)
class Result:
    """Logits float32 [n, V] of both branches, and the tokens int64 [n] drawn from them; None where not asked for."""

    logits: Logits | None
    tokens: Tensor | None


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
        if first.tokens is None:
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
        self.valid = self._valid()
        # A collapsed prefix is one slot that counts for as many as it stands for.
        self.extra: Tensor | None = None
        if self.cache.collapse:
            self.extra = self.spread([f.lane.extra for f in self.feeds])

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

    def embed(self, model: ARModel) -> Tensor:
        """Embedded tokens [rows * count, dim]."""
        grid = self.cache.grid
        if self.feeds[0].tokens is None:
            return model.embed_prefix(torch.cat([f.lane.features for f in self.feeds]), grid).flatten(0, 1)
        table = self.cache.position
        tokens = torch.stack([f.tokens for f in self.feeds if f.tokens is not None])
        cond_len = self.feeds[0].lane.cond_len
        x = self.spread(list(model.tok_embeddings(tokens)))
        if table is not None and self.start is not None:
            x = x + table[self.start - cond_len : self.kv_len - cond_len]
        elif table is not None:
            x = x + table[self.slots - cond_len]
        everywhere = [f.lane.everywhere for f in self.feeds]
        if everywhere[0] is not None:
            x = x + torch.cat([e for e in everywhere if e is not None])
        return x.flatten(0, 1)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write keys and values, then attend: q, k, v [rows * count, H, D] -> [rows * count, H, D]."""
        rows = slice(self.first_row, self.first_row + self.rows)
        keys, values = self.cache.k[layer][rows], self.cache.v[layer][rows]
        q, k, v = (t.unflatten(0, (self.rows, self.count)) for t in (q, k, v))
        q = kv_write(q, k, v, self.slots, self.cache.rotary, keys, values, start=self.start)
        if self.extra is None:
            o = verify_attention(q, keys, values, self.slots, self.valid, kv_len=self.kv_len, start=self.start)
        else:
            o, lse = verify_attention(
                q, keys, values, self.slots, self.valid, kv_len=self.kv_len, start=self.start, return_lse=True
            )
            o = weigh(o, lse, values[:, 0], self.extra)
        return o.flatten(0, 1)


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
                and last.lane.first_row + last.lane.branches == feed.lane.first_row
            ):
                groups[-1].append((i, feed))
                continue
        groups.append([(i, feed)])
    return [Group(g) for g in groups]


def run(feeds: Sequence[Feed]) -> list[Result]:
    """Run feeds, each of another lane, and return a result for each, in order."""
    results: list[Result] = [Result(None, None)] * len(feeds)
    by_model: dict[int, list[int]] = {}
    for i, feed in enumerate(feeds):
        by_model.setdefault(id(feed.lane.cache.model), []).append(i)
    for indices in by_model.values():
        part = [feeds[i] for i in indices]
        for i, logits in zip(indices, forward(part[0].lane.cache.model, part), strict=True):
            results[i] = Result(logits, None)
    draw(feeds, results)
    return results


def forward(model: ARModel, feeds: Sequence[Feed]) -> list[Logits | None]:
    """One forward of one model over all tokens of the feeds."""
    groups = grouped(feeds)
    sizes = [g.rows * g.count for g in groups]
    embedded = [g.embed(model) for g in groups]
    x = (embedded[0] if len(embedded) == 1 else torch.cat(embedded))[None]
    for layer, block in enumerate(model.blocks):
        q, k, v = (t[0] for t in block.qkv(x))
        if len(groups) == 1:
            out = groups[0].attend(layer, q, k, v)
        else:
            parts = zip(groups, q.split(sizes), k.split(sizes), v.split(sizes), strict=True)
            out = torch.cat([g.attend(layer, *qkv) for g, *qkv in parts])
        x = block.finish(x, out[None])
    return select(model, groups, x[0], len(feeds))


def select(model: ARModel, groups: list[Group], hidden: Tensor, n: int) -> list[Logits | None]:
    """Logits of the wanted tokens: the output head runs on those alone."""
    index: list[int] = []
    places: list[tuple[int, int, int, bool]] = []
    at = 0
    for group in groups:
        for i, feed in zip(group.indices, group.feeds, strict=True):
            wanted = feed.wanted()
            places.append((i, len(index), len(wanted), feed.lane.guided))
            for _ in range(feed.lane.branches):
                index += [at + w for w in wanted]
                at += group.count
    found: list[Logits | None] = [None] * n
    if not index:
        return found
    if len(index) < len(hidden):
        hidden = hidden[torch.tensor(index, device=hidden.device)]
    logits = model.logits(hidden)
    for i, begin, count, guided in places:
        if count:
            middle = begin + count
            uncond = logits[middle : middle + count] if guided else None
            found[i] = Logits(logits[begin:middle], uncond, model.output.weight.dtype)
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
            results[i] = Result(results[i].logits, drawn)


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
