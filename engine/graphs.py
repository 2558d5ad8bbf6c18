"""Forwards of fixed shapes over buffers of fixed addresses, which a CUDA graph can replay.

A step of one token is a hundred small kernels: on a GPU their launches take longer than their work. A `StaticStep` runs
the first rows of a cache, padded to a bucket of rows, of tokens and of keys, so that a handful of shapes serves a whole
generation and each is captured once. Padding writes nothing, attends to nothing, and is not returned.

Where all feeds draw into the memory of their lanes with the same parameters, the draw is part of the step, and so is
what serial decoding does next: the token just drawn is the next one fed, one slot further. As long as the feeds go on
like that the host gives the step nothing and waits for nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from ..kernels.kv_write import OP as KV_WRITE
from ..kernels.kv_write.call import Call as Write
from ..kernels.local_resample import OP as LOCAL_RESAMPLE
from ..kernels.local_resample.call import Call as Resample
from ..kernels.verify_attention import OP as VERIFY_ATTENTION
from ..kernels.verify_attention.call import Call as Attention
from .batch import Draw, Feed, span
from .cache import KVCache, Lane
from .collapse import weigh
from .devices import send, upload
from .models.eagle import EagleDrafter
from .sampling import Logits, SamplingParams

LOG = logging.getLogger(__name__)
# Keys are counted in buckets of at least this many slots, and in at most so many buckets: attention is told of more
# keys than there are, and masks them.
KEYS = 256
BUCKETS = 8
# Up to so many tokens a row all feeds of a cache share a step, padded to the longest; longer ones are verifications.
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
        rows: rows of the cache from the first on.
        width: tokens a row.
        keys: slots that attention reads.
        masked: whether some slots may be invalid.
        logits: whether logits are returned.
        drawing: how the step samples, if it does.
    """

    rows: int
    width: int
    keys: int
    masked: bool
    logits: bool
    drawing: Drawing | None


def can_serve(feed: Feed) -> bool:
    """Whether steps of fixed shapes serve a feed: not of a prefix, a draft tree or its drafter, nor in a type of its
    own."""
    return not (
        feed.tokens is None
        or feed.tree is not None
        or feed.keep
        or feed.narrowed is not None
        or isinstance(feed.lane.cache.model, EagleDrafter)
    )


def parts(feeds: Sequence[Feed], indices: Sequence[int]) -> list[list[int]]:
    """Feeds that `can_serve` as those of one step each: of one cache, and short ones apart from long ones."""
    found: dict[tuple[int, int], list[int]] = {}
    for i in indices:
        count = bucket(feeds[i].count)
        found.setdefault((id(feeds[i].lane.cache), 0 if count <= FEW else count), []).append(i)
    return list(found.values())


def key_of(feeds: Sequence[Feed]) -> Key | None:
    """The key of the step for the feeds of one of the `parts`.

    None: it would compute too much for nothing, for the rows lie far apart.
    """
    cache = feeds[0].lane.cache
    rows = min(len(cache.used), max(2, bucket(max(f.lane.first_row + f.lane.branches for f in feeds))))
    count = bucket(max(feed.count for feed in feeds))
    if rows * count > max(FREE, 2 * bucket(sum(f.lane.branches * f.count for f in feeds))):
        return None
    last = max(max(feed.positions) for feed in feeds) + 1 + cache.cond_len
    unit = max(KEYS, -(-cache.slots // (BUCKETS * KEYS)) * KEYS)
    keys = min(cache.slots, -(-last // unit) * unit)
    masked = any(feed.lane.valid is not None for feed in feeds)
    drawing = drawing_of(feeds)
    if drawing not in cache.drawings and len(cache.drawings) >= DRAWINGS:
        drawing = None
    wanted = drawing is None and any(len(feed.wanted()) for feed in feeds)
    return Key(rows, count, keys, masked, wanted, drawing)


def drawing_of(feeds: Sequence[Feed]) -> Drawing | None:
    """How to sample for all feeds, if that is one way, and all tokens stay in the memory of the lanes."""
    found: Drawing | None = None
    for feed in feeds:
        draw = feed.draw
        if draw is None or draw.into is not feed.lane.tokens or feed.lane.memory is not feed.lane.cache.tokens:
            return None
        here = Drawing(draw.params, int(draw.noise.purpose))
        if found not in (None, here) or draw.params.guided != feed.lane.guided:
            return None
        found = here
    return found


def step_of(feeds: Sequence[Feed]) -> StaticStep | None:
    """The step that serves the feeds of one of the `parts`, if one does."""
    key, cache = key_of(feeds), feeds[0].lane.cache
    if key is None:
        return None
    if key not in cache.steps:
        cache.steps[key] = StaticStep(cache, key)
        if key.drawing is not None:
            cache.drawings.add(key.drawing)
    return cast(StaticStep, cache.steps[key])


def capture_all(cache: KVCache, requests: int) -> None:
    """Capture the steps that a cache has used for all numbers of rows that so many requests may take, and for fewer
    tokens a row, as a window has them at its ends.

    Verifications are captured as they come: requests are seldom in one at the same time.
    """
    for key in [key for key in cache.steps if key.width <= FEW]:
        branches = 2 if key.drawing is None or key.drawing.params.guided else 1
        most = min(len(cache.used), branches * requests)
        for rows in sorted({min(most, rows) for rows in powers(2, bucket(most))}):
            for width in powers(1, key.width):
                other = key._replace(rows=rows, width=width)
                if other not in cache.steps:
                    cache.steps[other] = StaticStep(cache, other)
                    cache.steps[other].prepare()


def powers(first: int, last: int) -> list[int]:
    """Powers of two, both included."""
    return [1 << i for i in range(first.bit_length() - 1, last.bit_length())]


class StaticStep:
    """One forward of the first rows of a cache at one shape.

    Args:
        cache: the keys and values; while it does not grow, their addresses stay.
        key: the shape.
    """

    def __init__(self, cache: KVCache, key: Key) -> None:
        device, rows, count = cache.device, key.rows, key.width
        self.cache, self.key = cache, key
        # All that the host tells a step each time lies in one piece, which is copied at once: tokens, positions whose
        # tokens are fed instead, slots and positions that are drawn, [rows, count] each; then counts and seeds, [rows].
        self.told = torch.from_numpy(self.padding()).to(device)
        grids = self.told[: 4 * rows * count].view(4, rows, count)
        self.given, self.sources, self.slots, self.targets = grids.unbind()
        self.counts, self.seeds = self.told[4 * rows * count :].view(2, rows).unbind()
        self.valid = torch.ones(rows, cache.slots, dtype=torch.bool, device=device) if key.masked else None
        self.extra = torch.zeros(rows, device=device) if cache.collapse else None
        self.everywhere: Tensor | None = None
        self.lanes: list[Lane] = []
        # What the step holds for its next run: (lane, changes of what it may see, position), by feed.
        self.coming: list[tuple[Lane, int, int]] = []
        self.graph: torch.cuda.CUDAGraph | None = None
        self.uncaptured = device.type != "cuda"
        self.out: Tensor | None = None

    def padding(self) -> np.ndarray:
        """What the host tells a step that has nothing to do, int64."""
        rows, count = self.key.rows, self.key.width
        told = np.full(rows * (4 * count + 2), -1, dtype=np.int64)
        told[: rows * count] = 0
        told[4 * rows * count :] = 0
        return told

    def run(self, feeds: Sequence[Feed]) -> list[Logits | None]:
        """Run feeds, each of another lane, that `key_of` gave this step's key."""
        with self.cache.guard():
            if self.graph is None and not self.uncaptured:
                self.prepare()
            self.share(feeds)
            coming, self.coming = self.coming, []  # none, should the step fail
            if not coming or coming != [(f.lane, f.lane.changes, f.positions[0]) for f in feeds]:
                self.fill(feeds)
            if self.graph is None:
                self.out = self.body()
            else:
                self.graph.replay()
            self.coming = self.following(feeds)
            return [self.result(feed) for feed in feeds]

    def prepare(self) -> None:
        """Record the step while every row is padding, so that nothing is written.

        Out of memory: the step runs without a graph from now on.
        """
        if self.everywhere is None and self.cache.everywhere is not None:
            self.everywhere = self.cache.everywhere.new_zeros(self.key.rows, *self.cache.everywhere.shape[1:])
        if self.uncaptured:
            return
        with self.cache.guard():
            try:
                self.capture()
            except torch.OutOfMemoryError:
                self.uncaptured = True
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
            self.out = self.body()
        self.graph = graph

    def share(self, feeds: Sequence[Feed]) -> None:
        """Write what stays the same as long as the lanes do."""
        lanes = [feed.lane for feed in feeds]
        if lanes == self.lanes:
            return
        if self.everywhere is None and lanes[0].everywhere is not None:
            self.everywhere = lanes[0].everywhere.new_zeros(self.key.rows, *lanes[0].everywhere.shape[1:])
        for lane in lanes:
            row = slice(lane.first_row, lane.first_row + lane.branches)
            if self.everywhere is not None and lane.everywhere is not None:
                self.everywhere[row] = lane.everywhere
            if self.extra is not None:
                self.extra[row] = lane.extra
        self.lanes = lanes

    def fill(self, feeds: Sequence[Feed]) -> None:
        """Tell the step what the feeds say; rows without a feed become padding."""
        rows, count = self.key.rows, self.key.width
        told = self.padding()
        given, sources, slots, targets = told[: 4 * rows * count].reshape(4, rows, count)
        counts, seeds = told[4 * rows * count :].reshape(2, rows)
        others: list[tuple[slice, int, Tensor]] = []
        for feed in feeds:
            lane, n = feed.lane, feed.count
            row = slice(lane.first_row, lane.first_row + lane.branches)
            slots[row, :n] = feed.positions
            slots[row, :n] += lane.cond_len
            counts[row] = n
            if feed.held:
                # Every branch feeds the tokens of the lane, which lie in its first row.
                sources[row, :n] = feed.sources
                sources[row, :n] += lane.first_row * self.cache.tokens.shape[1]
            else:
                others.append((row, n, feed.values()))
            if self.key.drawing is not None:
                draw = cast(Draw, feed.draw)
                targets[lane.first_row, feed.wanted()] = draw.positions
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
            for feed in feeds:
                if feed.lane.valid is not None:
                    valid[feed.lane.first_row : feed.lane.first_row + feed.lane.branches] = feed.lane.valid
            send(valid, self.valid)

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

    def body(self) -> Tensor | None:
        """Logits float32 [rows, count, V] from what the buffers hold; no step of it waits for the device."""
        model, position = self.cache.model, self.cache.position
        kept = self.cache.tokens.view(-1)[self.sources.clamp(min=0)]
        # A row whose logits were not finite has drawn -1.
        x = model.tok_embeddings(torch.where(self.sources < 0, self.given, kept).clamp_(min=0))
        if position is not None:
            x = x + position[(self.slots - self.cache.cond_len).clamp(min=0)]
        if self.everywhere is not None:
            here = self.everywhere
            if here.shape[1] > 1:
                at = (self.slots - self.cache.cond_len).clamp(min=0)
                here = here.gather(1, at[..., None].expand(-1, -1, here.shape[-1]))
            x = x + here
        x = model.run(x, self.attend)
        if self.key.drawing is not None:
            self.draw(x, self.key.drawing)
        return model.logits(x) if self.key.logits else None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write keys and values of all rows, then attend."""
        keys, values = self.cache.k[layer][: self.key.rows], self.cache.v[layer][: self.key.rows]
        q = KV_WRITE(Write(q, k, v, self.slots, self.cache.rotary, keys, values))
        o, lse = VERIFY_ATTENTION(
            Attention(
                q,
                keys,
                values,
                self.slots,
                self.valid,
                self.key.keys,
                counts=self.counts,
                return_lse=self.extra is not None,
            )
        )
        return o if self.extra is None else weigh(o, lse, values[:, 0], self.extra)

    def draw(self, x: Tensor, drawing: Drawing) -> None:
        """Sample behind every token of the features [rows, count, dim], keep what is wanted, and go one token on."""
        model, params = self.cache.model, drawing.params
        memory, targets, seeds = self.cache.tokens[: self.key.rows], self.targets, self.seeds
        if params.guided:
            # The pairs of a CFG pair apart: each half of the logits is one piece.
            x = x.view(-1, 2, *x.shape[1:]).transpose(0, 1)
            memory, targets, seeds = memory[0::2], targets[0::2], seeds[0::2]
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
        memory.scatter_(1, torch.where(targets < 0, unwanted, targets), drawn.view(targets.shape))
        if self.key.width == 1:
            for buffer in (self.sources, self.slots, self.targets):
                buffer += buffer >= 0

    def result(self, feed: Feed) -> Logits | None:
        """A copy of the logits that a feed asked for: the next run overwrites those of this one."""
        wanted = feed.wanted()
        if not len(wanted) or self.out is None:
            return None
        row = feed.lane.first_row
        rows, found = slice(row, row + feed.lane.branches), span(wanted)
        both = self.out[rows, found].clone() if found else self.out[rows, upload(wanted, self.out.device)]
        return Logits(both[0], both[1] if feed.lane.guided else None, self.cache.model.dtype)
