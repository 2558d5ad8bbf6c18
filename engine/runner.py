"""The one primitive: feed tokens of any requests at any slots in one forward, get logits for some of them.

A decoder says what it wants fed (`Feed`); the runner packs the feeds of all requests, whatever their decoders and
phases, so that the projections of a layer run once over all tokens. Attention runs once for each `Batch` of feeds that
have the same number of tokens and lie in adjacent rows of one cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from ..kernels.local_resample import OP as LOCAL_RESAMPLE
from ..kernels.local_resample.call import Call
from . import host_step
from .batch import Batch, Feed, Result, grouped, span
from .devices import upload
from .graph_key import can_serve, parts
from .graphs import step_of
from .models.eagle import Model
from .row_ends import with_row_ends
from .sampling import Logits, Noise, SamplingParams


def run(feeds: Sequence[Feed], static: bool | None = None) -> list[Result]:
    """Run feeds, each of another lane, and return a result for each, in order.

    Args:
        static: use steps of fixed shapes, which CUDA graphs replay; None is on a GPU only.

    Feeds of all caches that no such step serves share one forward a model.
    """
    feeds = [feed if feed.lane.layout.plain else with_row_ends(feed) for feed in feeds]
    results: list[Result] = [Result(None, None)] * len(feeds)
    fixed = wants_static(feeds[0].lane.cache.device, static)
    served = [i for i, feed in enumerate(feeds) if fixed and can_serve(feed)]
    by_model: dict[tuple[int, torch.dtype | None], list[int]] = {}
    for i, feed in enumerate(feeds):
        if i not in served:
            by_model.setdefault((id(feed.lane.cache.model), feed.narrowed), []).append(i)
    for indices in parts(feeds, served):
        part = [feeds[i] for i in indices]
        step = step_of(part)
        found = forward(part[0].lane.cache.model, part) if step is None else step.run(part)
        for i, result in zip(indices, found, strict=True):
            results[i] = result
    for indices in by_model.values():
        part = [feeds[i] for i in indices]
        for i, result in zip(indices, forward(part[0].lane.cache.model, part), strict=True):
            results[i] = result
    draw(feeds, results)
    return results


def wants_static(device: torch.device, wanted: bool | None) -> bool:
    """Whether steps of fixed shapes are wanted; None is on a GPU only."""
    return device.type == "cuda" if wanted is None else wanted


def forward(model: Model, feeds: Sequence[Feed]) -> list[Result]:
    """One forward of one model over all tokens of the feeds, which are computed in the same type."""
    batches = grouped(feeds)
    sizes = [b.rows * b.count for b in batches]
    embedded = [b.embed(model) for b in batches]
    x = (embedded[0] if len(embedded) == 1 else torch.cat(embedded))[None]
    if feeds[0].narrowed is not None:
        x = x.to(feeds[0].narrowed)

    def each(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(batches, q.split(sizes, 1), k.split(sizes, 1), v.split(sizes, 1), strict=True)
        return torch.cat([b.attend(layer, *qkv) for b, *qkv in parts], dim=1)

    whole = host_step.run_layers(model, batches[0], x[0]) if len(batches) == 1 else None
    x = model.run(x, batches[0].attend if len(batches) == 1 else each) if whole is None else whole[None]
    return select(model, batches, x[0], len(feeds))


def select(model: Model, batches: list[Batch], hidden: Tensor, n: int) -> list[Result]:
    """Logits and features of the wanted tokens: the output head runs on those alone."""
    index: list[int] = []
    places: list[tuple[int, int, int, Feed]] = []
    at = 0
    for batch in batches:
        for i, feed in zip(batch.indices, batch.feeds, strict=True):
            wanted = feed.wanted()
            places.append((i, len(index), len(wanted), feed))
            for _ in range(feed.lane.branches):
                index += [at + w for w in wanted]
                at += batch.count
    found = [Result(None, None)] * n
    if not index:
        return found
    if len(index) < len(hidden):
        hidden = hidden[upload(index, hidden.device)]
    logits = model.logits(hidden)
    for i, begin, count, feed in places:
        if count:
            middle = begin + count
            uncond = logits[middle : middle + count] if feed.lane.guided else None
            both = Logits(logits[begin:middle], uncond, model.dtype)
            branches = feed.lane.branches
            kept = hidden[begin : begin + branches * count].unflatten(0, (branches, count)) if feed.keep else None
            found[i] = Result(both, None, kept)
    return found


def draw(feeds: Sequence[Feed], results: list[Result]) -> None:
    """Sample for all feeds that ask for it, one call for each set of sampling parameters."""
    by_params: dict[tuple[SamplingParams, bool, int], list[int]] = {}
    for i, feed in enumerate(feeds):
        logits = results[i].logits
        if feed.draw is not None and logits is not None:
            # A GPU draws the random numbers in the same kernel, of one purpose a call.
            purpose = int(feed.draw.noise.purpose) if logits.cond.is_cuda else 0
            by_params.setdefault((feed.draw.params, logits.uncond is None, purpose), []).append(i)
    for (params, *_), indices in by_params.items():
        rows = [r.logits for r in (results[i] for i in indices) if r.logits is not None]
        draws = [d for d in (feeds[i].draw for i in indices) if d is not None]
        tokens = sample(Logits.cat(rows), [d.noise for d in draws], [d.positions for d in draws], params).split(
            [len(d.positions) for d in draws]
        )
        for i, d, drawn in zip(indices, draws, tokens, strict=True):
            if d.into is None:
                results[i] = replace(results[i], tokens=drawn)
            else:
                d.into[span(d.positions) or upload(d.positions, d.into.device)] = drawn
                results[i] = replace(results[i], logits=None)


def leaned(noise: Noise, positions: Sequence[int], params: SamplingParams) -> Tensor:
    """What is added to the logarithms of a request's probabilities at positions before the largest is taken, [n, V]."""
    drawn = noise.rows(positions) if params.temperature > 0 else None
    factors = None if noise.lean is None else noise.lean(positions)
    if drawn is None or factors is None:
        found = factors if drawn is None else drawn
        return torch.zeros(len(positions), noise.vocab, device=noise.device) if found is None else found
    return drawn + factors


def sample(
    logits: Logits, noises: Sequence[Noise], positions: Sequence[Sequence[int]], params: SamplingParams
) -> Tensor:
    """Tokens int64 [n] from logits [n, V], one request's noise and positions after the other; one purpose for all."""
    places = [p for where in positions for p in where]
    logits, params = params.prepare(logits, places)
    noise = seed = position = None
    if any(noise.lean is not None for noise in noises):
        noise = torch.cat([leaned(n, where, params) for n, where in zip(noises, positions, strict=True)])
        # A greedy draw takes the likeliest product.
        params = replace(params, temperature=params.temperature or 1.0)
    elif logits.cond.is_cuda:
        seeds = [noise.seed for noise, where in zip(noises, positions, strict=True) for _ in where]
        seed, position = upload([seeds, places], logits.cond.device).unbind()
    else:
        # Kept by the requests: on a CPU the random numbers cost more than what is done with them.
        gumbel = [noise.rows(where) for noise, where in zip(noises, positions, strict=True)]
        noise = gumbel[0] if len(gumbel) == 1 else torch.cat(gumbel)
    # The arguments fit by construction: the op is called past its checks.
    call = Call(
        logits.cond,
        logits.uncond,
        noise,
        params.cfg_scale,
        params.temperature,
        params.top_k,
        params.top_p,
        seed=seed,
        position=position,
        purpose=int(noises[0].purpose),
    )
    return cast(Tensor, LOCAL_RESAMPLE(call))
