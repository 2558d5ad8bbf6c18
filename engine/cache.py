"""The KV cache of one model on one grid, and the lanes that requests hold of it.

Keys and values lie by row and slot. A lane is one request on one grid: its CFG pair is one unit, two adjacent rows, the
first of them even. The tokens of a lane lie beside them by raster position: a step of a fixed shape reads what it feeds
there and writes what it draws there, so that the host need not see either.

Slot = condition length + what the layout of the image says for a position, which for a raster is its number: a rejected
token is overwritten in place, nothing is paged or moved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor

from .collapse import run_prefix
from .devices import upload
from .layout import Layout
from .models.ar_model import ARModel
from .models.eagle import Model

# Unconditional prefixes kept: under caption masks there is one for each length of caption.
KEPT_NULLS = 16


class KVCache:
    """Rows of keys and values [rows, slots, Hkv, D], one pair of tensors a layer.

    Args:
        model: the AR transformer, or the drafter that continues its features.
        grid: side length in tokens.
        rows: how many to begin with; the cache doubles when they run out.
        collapse: hold the prefix in one slot (see `collapse`).
        most: rows that it is expected to grow to; up to there the tokens of its lanes stay where they are.
    """

    def __init__(self, model: Model, grid: int, rows: int = 2, *, collapse: bool = False, most: int = 0) -> None:
        self.model, self.grid, self.collapse = model, grid, collapse
        self.cond_len = prefix_slots(model, collapse)
        self.layout = layout_of(model, grid)
        self.slots = self.cond_len + self.layout.slots
        # What every token of a position is given; the weights do not change any more.
        position = model.position_embedding(grid)
        self.position = None if position is None else position.detach()
        rotary = model.rotary(grid)
        self.rotary = None if rotary is None else rotary[model.config.cond_len - self.cond_len :]
        self.k: list[Tensor] = []
        self.v: list[Tensor] = []
        # Keys and values of the unconditional prefix by layer, and the logits behind it, by visible prefix slots.
        self.null: dict[bytes, tuple[list[tuple[Tensor, Tensor]], Tensor]] = {}
        self.used: list[bool] = []
        self._views: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        # The runner's steps of fixed shapes by what tells them apart: they hold addresses of this cache.
        self.steps: dict[Any, Any] = {}
        # The ways to sample that are part of some of them.
        self.drawings: set[Any] = set()
        # Bytes that steps may still take, where there is a limit, and what was refused for it.
        self.room: Callable[[], int] | None = None
        self.refused: set[Any] = set()
        # What the tokens of a row are given beside their embedding [rows, 1 or N, dim], from the first lane on that is
        # given any; and with `collapse` how many more slots the first slot of a row stands for, float32 [rows].
        self.everywhere: Tensor | None = None
        self.extra = torch.zeros(0, device=model.device)
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None
        self.tokens = self._token_memory(max(1, rows, most))
        self._allocate(max(1, rows))

    @staticmethod
    def bytes_per_row(model: Model, grid: int, *, collapse: bool = False) -> int:
        """Bytes of one row, all layers: keys and values of every slot."""
        c = model.config
        heads = 2 * c.n_layers * model.n_kv_heads
        slots = prefix_slots(model, collapse) + layout_of(model, grid).slots
        return heads * slots * c.head_dim * model.dtype.itemsize

    def _token_memory(self, rows: int) -> Tensor:
        """Tokens int64 [rows, N + 1] by raster position; the last column takes what nobody asked for."""
        return torch.zeros(rows, self.layout.size + 1, dtype=torch.int64, device=self.model.device)

    def _allocate(self, rows: int) -> None:
        """Grow to so many rows. The books change once the memory is there: a failure leaves the cache as it was."""
        c, dtype, device = self.model.config, self.model.dtype, self.model.device
        shape = (rows, self.slots, self.model.n_kv_heads, c.head_dim)
        # Zeros, not empty memory: a slot that is masked out is still read.
        grown = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(2 * c.n_layers)]
        for new, before in zip(grown, (*self.k, *self.v), strict=False):
            new[: len(before)] = before
        tokens = self.tokens
        if len(tokens) < rows:
            tokens = self._token_memory(rows)
            tokens[: len(self.tokens)] = self.tokens
        everywhere, extra = self.everywhere, self.extra.new_zeros(rows if self.collapse else 0)
        extra[: len(self.extra)] = self.extra
        if self.everywhere is not None:
            everywhere = self.everywhere.new_zeros(rows, *self.everywhere.shape[1:])
            everywhere[: len(self.used)] = self.everywhere
        if self.steps and device.type == "cuda":
            torch.cuda.synchronize(device)  # graphs that may still run are about to go, with the memory they use
        self.k, self.v, self.tokens = grown[: c.n_layers], grown[c.n_layers :], tokens
        self.everywhere, self.extra = everywhere, extra
        self.used += [False] * (rows - len(self.used))
        self._views.clear()
        self.steps.clear()
        self.drawings.clear()
        # The memory of graphs that are gone is not for new ones to share: they would hold what torch gives back.
        self._pool = None

    def reserve(self, rows: int) -> None:
        """Have at least so many rows; OutOfMemoryError leaves the cache as it was."""
        if rows > len(self.used):
            self._allocate(rows)

    @property
    def bytes(self) -> int:
        """Bytes of all rows, used or not: keys and values."""
        return len(self.used) * self.bytes_per_row(self.model, self.grid, collapse=self.collapse)

    @property
    def device(self) -> torch.device:
        """Where the keys and values lie."""
        return self.k[0].device

    def guard(self) -> AbstractContextManager[None]:
        """Makes the device of the cache current: a graph is captured and replayed on the current one."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def graph_pool(self) -> Any:
        """The memory pool that the CUDA graphs of this cache share: they never run at the same time."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        return self._pool

    def capture_stream(self) -> torch.cuda.Stream:
        """The stream on which graphs of this cache are captured, apart from those of all others."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        return self._stream

    def rows(self, first: int, n: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [n, slots, H, D] of adjacent rows, one pair a layer."""
        key = (first, n)
        if key not in self._views:
            self._views[key] = [
                (k[first : first + n], v[first : first + n]) for k, v in zip(self.k, self.v, strict=True)
            ]
        return self._views[key]

    def take(self, n: int) -> int:
        """Lend `n` adjacent rows, zeroed; returns the first, a multiple of `n`."""
        first = self._free(n)
        if first is None:
            self._allocate(len(self.used) + max(len(self.used), n))
            first = self._free(n)
        if first is None:  # the last run of free rows began at no multiple of n
            self._allocate(-(-len(self.used) // n) * n + n)
            first = len(self.used) - n
        for layer in (*self.k, *self.v):
            layer[first : first + n].zero_()
        self.tokens[first].zero_()
        self.used[first : first + n] = [True] * n
        return first

    def _free(self, n: int) -> int | None:
        """The first of `n` adjacent free rows, a multiple of `n`."""
        for first in range(0, len(self.used) + 1 - n, n):
            if not any(self.used[first : first + n]):
                return first
        return None

    def release(self, first: int, n: int) -> None:
        """Take rows back."""
        self.used[first : first + n] = [False] * n


def layout_of(model: Model, grid: int) -> Layout:
    """Where the tokens of an image stand."""
    return model.layout(grid) if isinstance(model, ARModel) else Layout((grid,))


def prefix_slots(model: Model, collapse: bool) -> int:
    """Slots that the condition takes; ValueError when a prefix cannot be collapsed."""
    if collapse and not model.zero_prefix:
        raise ValueError(
            f"the prefix of a {type(model).__name__} cannot be collapsed: that takes a model whose prefix keys "
            f"are zero, such as LlamaGen; leave collapse_prefix out"
        )
    return 1 if collapse else model.config.cond_len


class Lane:
    """Rows of a KV cache, and what every token of the request is given beside its own embedding.

    Args:
        cache: where the keys and values lie.
        features: condition features [n, cond_len, cond_dim]: the conditional branch and, with guidance, the
            unconditional one.
        first_row: rows that are taken already; None takes them.
        mask: bool [cond_len] on the CPU, prefix slots that other slots may see; None is all.
    """

    def __init__(
        self, cache: KVCache, features: Tensor, first_row: int | None = None, mask: Tensor | None = None
    ) -> None:
        self.cache, self.branches = cache, features.shape[0]
        self.first_row = cache.take(self.branches) if first_row is None else first_row
        self.features, self.mask = features, mask
        if first_row is None:
            try:
                self._describe()
            except BaseException:
                self.close()
                raise
        # Tokens int64 [N] by raster position, for the decoder to use.
        self.memory = cache.tokens
        self.tokens = self.memory[self.first_row, : cache.layout.size]
        # None: every slot up to a query holds a token. Otherwise bool [slots], slots that may be seen: on the host,
        # which plans them. `changes` counts theirs.
        self.valid: Tensor | None = None
        self.changes = 0
        # Slots of the prefix that hold nothing and need not be fed: those in front, where the condition says so.
        self.skip = 0
        seen = cache.model.visible(features, cache.grid) if isinstance(cache.model, ARModel) else None
        # Whether the unconditional prefix is another for each prompt.
        self.told = seen is not None
        if seen is not None:
            self.skip = int((~seen).sum(dim=1).min())
            mask = None if bool(seen.all()) else seen[0] if bool((seen == seen[:1]).all()) else seen
        if mask is not None and not cache.collapse:
            self.valid = torch.ones(*mask.shape[:-1], cache.slots, dtype=torch.bool)
            self.valid[..., : self.cond_len] = mask

    def _describe(self) -> None:
        """Write what every token of the lane is given into its rows of the cache."""
        cache, rows = self.cache, slice(self.first_row, self.first_row + self.branches)
        everywhere = cache.model.embed_global(self.features, cache.grid)
        if everywhere is not None:
            if cache.everywhere is None:
                cache.everywhere = everywhere.new_zeros(len(cache.used), *everywhere.shape[1:])
            cache.everywhere[rows] = everywhere
        if cache.collapse:
            # Slots that the one prefix slot stands for, beside itself.
            seen = cache.model.config.cond_len if self.mask is None else int(self.mask.sum())
            cache.extra[rows].fill_(seen - 1.0)

    @property
    def everywhere(self) -> Tensor | None:
        """What the tokens of each branch are given beside their embedding [branches, 1 or N, dim], if anything."""
        every = self.cache.everywhere
        return None if every is None else every[self.first_row : self.first_row + self.branches]

    @property
    def grid(self) -> int:
        return self.cache.grid

    @property
    def layout(self) -> Layout:
        return self.cache.layout

    @property
    def size(self) -> int:
        """Number of image tokens, all grids."""
        return self.cache.layout.size

    @property
    def cond_len(self) -> int:
        return self.cache.cond_len

    @property
    def guided(self) -> bool:
        return self.branches == 2

    def image(self) -> Tensor:
        """A copy of the tokens, int64 [H, W]: the memory is the next request's once this lane is closed."""
        return self.tokens[self.layout.start :].clone().view(self.grid, self.grid)

    def hide(self, positions: Sequence[int]) -> None:
        """Make positions invisible until they are shown again, and the row ends behind them."""
        self._show(self.layout.slots_of(positions), False)

    def show(self, positions: Sequence[int]) -> None:
        """Make positions visible, and the row ends behind them."""
        if self.valid is not None:
            self._show(self.layout.slots_of(positions), True)

    def show_ends(self, positions: Sequence[int]) -> None:
        """Make the row ends behind positions visible, and not the positions themselves."""
        if self.valid is not None:
            self._show([self.layout.slot(p) + 1 for p in positions], True)

    def _show(self, slots: Sequence[int], value: bool) -> None:
        if not slots:
            return
        if self.valid is None:
            self.valid = torch.ones(self.cache.slots, dtype=torch.bool)
        self.valid[..., torch.tensor(slots) + self.cond_len] = value
        self.changes += 1

    def move(self, sources: Sequence[int], start: int) -> None:
        """Copy the keys and values in the slots of raster positions `sources` to those from `start` on."""
        if list(sources) == list(range(start, start + len(sources))):
            return
        rows = slice(self.first_row, self.first_row + self.branches)
        taken = upload([source + self.cond_len for source in sources], self.features.device)
        begin = start + self.cond_len
        for layer in (*self.cache.k, *self.cache.v):
            layer[rows, begin : begin + len(sources)] = layer[rows, taken]

    def branch(self, index: int) -> Lane:
        """One branch of this lane as a lane of its own: 0 is the conditional one. It shares the rows."""
        return Lane(self.cache, self.features[index : index + 1], self.first_row + index, self.mask)

    @property
    def null_key(self) -> bytes:
        """What the unconditional prefix depends on: which of its slots may be seen, or all that it is."""
        if self.mask is not None:
            return bytes(self.mask.tolist())
        return self.features[1].cpu().numpy().tobytes() if self.told else b""

    def write_collapsed(self) -> Tensor:
        """Run the prefix of this lane's one branch into the first slot; returns its logits [1, V]."""
        means, logits = run_prefix(cast(ARModel, self.cache.model), self.features, self.grid, self.mask)
        for k, v, mean in zip(self.cache.k, self.cache.v, means, strict=True):
            k[self.first_row, 0], v[self.first_row, 0] = 0, mean[0]
        return logits

    def keep_null(self, logits: Tensor) -> None:
        """Remember the prefix of the unconditional branch, which has just been fed, for all requests."""
        row, n = self.first_row + 1, self.cond_len
        layers = [(k[row, :n].clone(), v[row, :n].clone()) for k, v in zip(self.cache.k, self.cache.v, strict=True)]
        kept = self.cache.null
        while len(kept) >= KEPT_NULLS:
            del kept[next(iter(kept))]
        kept[self.null_key] = (layers, logits)

    def take_null(self) -> Tensor:
        """Put the remembered prefix into the unconditional row; returns its logits [1, V]."""
        if self.null_key not in self.cache.null:
            raise RuntimeError("the unconditional prefix has not been computed")
        layers, logits = self.cache.null[self.null_key]
        row, n = self.first_row + 1, self.cond_len
        for layer, (k, v) in enumerate(layers):
            self.cache.k[layer][row, :n] = k
            self.cache.v[layer][row, :n] = v
        return logits

    def close(self) -> None:
        """Give the rows back."""
        self.cache.release(self.first_row, self.branches)
