"""Forwards of fixed shapes over buffers of fixed addresses, which a CUDA graph can replay.

A step of one token is a hundred small kernels: on a GPU their launches take longer than their work. A `StaticStep` runs
the rows of a cache that its feeds take, padded to a bucket of rows, of tokens and of keys, so that a handful of shapes
serves a whole generation and each is captured once. Padding writes nothing, attends to nothing, and is not returned.

Where all feeds draw into the memory of their lanes with the same parameters, the draw is part of the step, and so is
what serial decoding does next: the token just drawn is the next one fed, one slot further. As long as the feeds go on
like that the host gives the step nothing and waits for nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ..kernels.kv_write import OP as KV_WRITE
from ..kernels.kv_write.call import Call as Write
from ..kernels.kv_write.reference import rotate
from ..kernels.local_resample import OP as LOCAL_RESAMPLE
from ..kernels.local_resample.call import Call as Resample
from ..kernels.verify_attention import OP as VERIFY_ATTENTION
from ..kernels.verify_attention.call import Call as Attention
from .batch import Draw, Feed, Result, Tree, span
from .cache import KVCache, Lane
from .collapse import weigh
from .devices import send, upload
from .graph_key import Drawing, Key, key_of
from .graph_memory import StepBytes, step_bytes, total_bytes
from .models.eagle import EagleDrafter
from .sampling import Logits

LOG = logging.getLogger(__name__)


def step_of(feeds: Sequence[Feed]) -> StaticStep | None:
    """The step that serves the feeds of one of the `parts`; None where there is no memory for it."""
    key, cache = key_of(feeds), feeds[0].lane.cache
    if key not in cache.steps:
        step = made(cache, key)
        if step is None:
            return None
        cache.steps[key] = step
        if key.drawing is not None:
            cache.drawings.add(key.drawing)
    return cast(StaticStep, cache.steps[key])


def graph_bytes(cache: KVCache) -> int:
    """Bytes that the steps of a cache hold beside it, see `graph_memory`."""
    return total_bytes(step.bytes for step in cache.steps.values())


def more_bytes(cache: KVCache, key: Key) -> int:
    """Bytes that the steps of a cache would hold more with one of this key."""
    need = step_bytes(cache.model, cache.slots, key)
    return total_bytes([*(step.bytes for step in cache.steps.values()), need]) - graph_bytes(cache)


def made(cache: KVCache, key: Key) -> StaticStep | None:
    """A new step; None where it does not fit into the budget of the cache or the memory of the device."""
    if cache.room is not None and (more := more_bytes(cache, key)) > cache.room():
        refuse(cache, key, f"kv_budget leaves no {more / 2**20:.1f} MiB")
        return None
    try:
        with cache.guard():
            return StaticStep(cache, key, step_bytes(cache.model, cache.slots, key))
    except torch.OutOfMemoryError:
        refuse(cache, key, "the device has no memory")
        torch.cuda.empty_cache()
        return None


def refuse(cache: KVCache, key: Key, reason: str) -> None:
    """Say once why steps run kernel by kernel."""
    if key not in cache.refused:
        LOG.warning("%s for the buffers and the graph of %s: these steps run kernel by kernel", reason, key)
    cache.refused.add(key)


class StaticStep:
    """One forward of some rows of a cache at one shape.

    Args:
        cache: the keys and values; while it does not grow, their addresses stay.
        key: the shape.
        need: bytes that it takes.
    """

    def __init__(self, cache: KVCache, key: Key, need: StepBytes) -> None:
        device, rows, count = cache.device, key.rows, key.width
        self.cache, self.key, self.bytes = cache, key, need
        # All that the host tells a step each time lies in one piece, which is copied at once: tokens, positions whose
        # tokens are fed instead, slots, positions that are drawn and raster positions of nodes, [rows, count] each;
        # then counts, seeds, rows of the cache and slots before a tree, [rows].
        self.told = torch.from_numpy(self.padding()).to(device)
        grids, each = self.told[: 5 * rows * count].view(5, rows, count), self.told[5 * rows * count :].view(4, rows)
        self.given, self.sources, self.slots, self.targets, self.at = grids.unbind()
        self.counts, self.seeds, self.index, self.before = each.unbind()
        self.valid = torch.ones(rows, cache.slots, dtype=torch.bool, device=device) if key.masked else None
        self.block: Tensor | None = None
        self.features: Tensor | None = None
        if key.tree:
            self.block = torch.zeros(rows, count, -(-count // 32), dtype=torch.int32, device=device)
            self.every_slot = torch.arange(cache.slots, device=device)
        if isinstance(cache.model, EagleDrafter):
            self.features = torch.zeros(
                rows, count, cache.model.target.config.dim, dtype=cache.model.dtype, device=device
            )
        # What the step holds for its next run: (lane, changes of what it may see, position), by feed.
        self.coming: list[tuple[Lane, int, int]] = []
        self.graph: torch.cuda.CUDAGraph | None = None
        self.uncaptured = device.type != "cuda"
        self.logits: Tensor | None = None
        self.hidden: Tensor | None = None

    def padding(self) -> np.ndarray:
        """What the host tells a step that has nothing to do, int64."""
        rows, count = self.key.rows, self.key.width
        told = np.zeros(rows * (5 * count + 4), dtype=np.int64)
        told[rows * count : 4 * rows * count] = -1
        return told

    def run(self, feeds: Sequence[Feed]) -> list[Result]:
        """Run feeds, each of another lane, that `key_of` gave this step's key."""
        with self.cache.guard():
            if self.graph is None and not self.uncaptured:
                self.prepare()
            coming, self.coming = self.coming, []  # none, should the step fail
            if not coming or coming != [(f.lane, f.lane.changes, f.positions[0]) for f in feeds]:
                self.fill(feeds)
            if self.graph is None:
                self.body()
            else:
                self.graph.replay()
            self.coming = self.following(feeds)
            return [self.result(feed, row) for feed, row in zip(feeds, places(feeds), strict=True)]

    def prepare(self) -> None:
        """Record the step while every row is padding, so that nothing is written.

        Out of memory: the step runs without a graph from now on.
        """
        if self.uncaptured:
            return
        with self.cache.guard():
            try:
                self.capture()
            except torch.OutOfMemoryError:
                self.uncaptured, self.logits, self.hidden = True, None, None
                self.bytes = self.bytes._replace(working=0)
                LOG.warning("no memory for a CUDA graph of %s: these steps run kernel by kernel", self.key)
                torch.cuda.empty_cache()

    def capture(self) -> None:
        """Record the step on the capture stream of the cache, whatever other threads do meanwhile."""
        stream = self.cache.capture_stream()
        # Kernels are compiled, and libraries take their workspaces, before anything is recorded.
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self.body()
        torch.cuda.current_stream().wait_stream(stream)
        graph, pool = torch.cuda.CUDAGraph(), self.cache.graph_pool()
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self.body()
        self.graph = graph

    def fill(self, feeds: Sequence[Feed]) -> None:
        """Tell the step what the feeds say; rows without a feed become padding."""
        rows, count = self.key.rows, self.key.width
        told = self.padding()
        given, sources, slots, targets, at = told[: 5 * rows * count].reshape(5, rows, count)
        counts, seeds, index, before = told[5 * rows * count :].reshape(4, rows)
        others: list[tuple[slice, int, Tensor]] = []
        for feed, row in zip(feeds, places(feeds), strict=True):
            lane, n = feed.lane, feed.count
            start = feed.positions if feed.tree is None else range(feed.tree.start, feed.tree.start + n)
            slots[row, :n] = start
            slots[row, :n] += lane.cond_len
            counts[row] = n
            index[row] = range(lane.first_row, lane.first_row + lane.branches)
            if feed.held:
                # Every branch feeds the tokens of the lane, which lie in its first row.
                sources[row, :n] = feed.sources
                sources[row, :n] += lane.first_row * self.cache.tokens.shape[1]
            else:
                others.append((row, n, feed.values()))
            if feed.tree is not None:
                at[row, :n] = feed.positions
                before[row] = feed.tree.start + lane.cond_len
            if self.key.drawing is not None:
                draw = cast(Draw, feed.draw)
                targets[row.start, feed.wanted()] = draw.positions
                seeds[row] = draw.noise.seed
        for row, n, tokens in others:
            if tokens.device.type == "cpu":
                given[row, :n] = tokens.numpy()
        send(torch.from_numpy(told), self.told)
        for row, n, tokens in others:
            if tokens.device.type != "cpu":
                self.given[row, :n] = tokens
        if self.valid is not None:
            valid = torch.ones(self.valid.shape, dtype=torch.bool)
            for feed, row in zip(feeds, places(feeds), strict=True):
                if feed.lane.valid is not None:
                    valid[row] = feed.lane.valid
            send(valid, self.valid)
        for feed, row in zip(feeds, places(feeds), strict=True):
            if self.block is not None:
                block = cast(Tree, feed.tree).block
                self.block[row, : feed.count, : block.shape[-1]] = block
            if self.features is not None:
                self.features[row, : feed.count] = cast(Tensor, feed.features)

    def following(self, feeds: Sequence[Feed]) -> list[tuple[Lane, int, int]]:
        """What the step itself makes ready: each token just drawn, to be fed at its position."""
        if self.key.width > 1 or self.key.drawing is None:
            return []
        found = []
        for feed in feeds:
            here = feed.positions[0]
            if (
                not feed.held
                or list(feed.sources or ()) != [here]
                or list(cast(Draw, feed.draw).positions) != [here + 1]
            ):
                return []
            found.append((feed.lane, feed.lane.changes, here + 1))
        return found

    def body(self) -> None:
        """Run what the buffers say, and leave logits float32 [rows, count, V] and features [rows, count, dim] where the
        key asks for them; no step of it waits for the device."""
        cache, model = self.cache, self.cache.model
        kept = cache.tokens.view(-1)[self.sources.clamp(min=0)]
        # A row whose logits were not finite has drawn -1.
        x = model.tok_embeddings(torch.where(self.sources < 0, self.given, kept).clamp_(min=0))
        at = self.at if self.key.tree else (self.slots - cache.cond_len).clamp(min=0)
        if cache.position is not None:
            x = x + cache.position[at]
        if cache.everywhere is not None:
            of_all = cache.everywhere.shape[1] == 1
            x = x + (cache.everywhere[self.index] if of_all else cache.everywhere[self.index[:, None], at])
        if isinstance(model, EagleDrafter):
            x = model.fused(cast(Tensor, self.features), x)
        # A node turns by its position, not by its slot, and sees what is committed before its tree.
        turn: Tensor | None = None
        valid = self.valid
        if self.key.tree:
            turn = None if cache.rotary is None else cache.rotary[at + cache.cond_len]
            committed = self.every_slot < self.before[:, None]
            valid = committed if valid is None else committed & valid
        extra = cache.extra[self.index] if cache.collapse else None

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values, rotary = cache.k[layer], cache.v[layer], cache.rotary
            if turn is not None:
                q, k, rotary = rotate(q, turn), rotate(k, turn), None
            q = KV_WRITE(Write(q, k, v, self.slots, rotary, keys, values, cache_rows=self.index))
            o, lse = VERIFY_ATTENTION(
                Attention(
                    q,
                    keys,
                    values,
                    self.slots,
                    valid,
                    self.key.keys,
                    block=self.block,
                    counts=self.counts,
                    return_lse=extra is not None,
                    cache_rows=self.index,
                )
            )
            return o if extra is None else weigh(o, lse, values[self.index, 0], extra)

        x = model.run(x, attend)
        self.hidden = x if self.key.keep else None
        if self.key.drawing is not None:
            self.draw(x, self.key.drawing)
        self.logits = model.logits(x) if self.key.logits else None

    def draw(self, x: Tensor, drawing: Drawing) -> None:
        """Sample behind every token of the features [rows, count, dim], keep what is wanted, and go one token on."""
        model, params = self.cache.model, drawing.params
        memory, index, targets, seeds = self.cache.tokens, self.index, self.targets, self.seeds
        if params.guided:
            # The pairs of a CFG pair apart: each half of the logits is one piece.
            x = x.view(-1, 2, *x.shape[1:]).transpose(0, 1)
            index, targets, seeds = index[0::2], targets[0::2], seeds[0::2]
        rows = model.logits(x.reshape(-1, x.shape[-1]))
        cond, uncond = rows.chunk(2) if params.guided else (rows, None)
        positions = targets.clamp(min=0).flatten()
        logits, params = params.prepare(Logits(cond, uncond, model.dtype), positions)
        drawn = LOCAL_RESAMPLE(
            Resample(
                logits.cond,
                logits.uncond,
                None,
                params.cfg_scale,
                params.temperature,
                params.top_k,
                params.top_p,
                seed=seeds[:, None].expand_as(targets).reshape(-1),
                position=positions,
                purpose=drawing.purpose,
            )
        )
        unwanted = memory.shape[1] - 1
        places = torch.where(targets < 0, unwanted, targets) + index[:, None] * memory.shape[1]
        memory.view(-1).scatter_(0, places.flatten(), drawn)
        if self.key.width == 1:
            for buffer in (self.sources, self.slots, self.targets):
                buffer += buffer >= 0

    def result(self, feed: Feed, row: slice) -> Result:
        """A copy of the logits and features that a feed asked for: the next run overwrites those of this one."""
        wanted, device = feed.wanted(), self.told.device
        outputs = (self.logits, self.hidden)
        if not len(wanted) or all(x is None for x in outputs):
            return Result(None, None)
        found = span(wanted)
        which: Tensor | slice = upload(wanted, device) if found is None else found
        both, kept = (x if x is None else x[row, which].clone() if found else x[row, which] for x in outputs)
        if both is None:
            return Result(None, None, kept)
        return Result(Logits(both[0], both[1] if feed.lane.guided else None, self.cache.model.dtype), None, kept)


def places(feeds: Sequence[Feed]) -> list[slice]:
    """The rows of a step that its feeds take, one after the other."""
    ends = np.cumsum([feed.lane.branches for feed in feeds]).tolist()
    return [slice(end - feed.lane.branches, end) for feed, end in zip(feeds, ends, strict=True)]
