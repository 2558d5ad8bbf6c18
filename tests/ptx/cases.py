"""Small awkward calls of every op of mulosd, each with what it must give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import attention_cases as draws
import torch
from torch import Tensor

from mulosd.kernels import (
    expand_islands,
    kv_write,
    local_resample,
    neighbours,
    pooled_mass,
    shuffle_nearest,
    verify_attention,
)

Call = Callable[[str], tuple[Tensor, ...]]
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class Drawn(NamedTuple):
    """`call(backend)` runs the op; floats must lie within `tolerance` of `expected`, integers must be equal."""

    call: Call
    expected: tuple[Tensor, ...]
    tolerance: float


@dataclass(frozen=True)
class Case:
    """One call; `draw` makes its tensors. The `core` is what every change is tested with."""

    op: str
    name: str
    draw: Callable[[], Drawn]
    core: bool = False

    def __str__(self) -> str:
        return f"{self.op}: {self.name}"


def all_cases() -> Iterator[Case]:
    """Every case of every op."""
    for cases in (_writes, _nearest, _islands, _pooled, _resampled, _attention):
        yield from cases()


def by_reference(call: Call, tolerance: float = 0.0) -> Drawn:
    """A call that must give what the torch backend gives."""
    return Drawn(call, call("torch"), tolerance)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _attention() -> Iterator[Case]:
    shapes = [
        (queries, kind, dim)
        for queries in (1, 5, 16, 33, 70)
        for kind, dims in (("fp16", (64, 100)), ("bf16", (96, 128)))
        for dim in dims
    ]
    shapes += [(3, "fp32", dim) for dim in (4, 64, 100)] + [(33, "bf16", 112), (40, "fp16", 20)]
    core = {(5, "fp16", 100), (33, "bf16", 96), (3, "fp32", 64)}
    for number, (queries, kind, dim) in enumerate(shapes):
        heads, mask = ((4, 2), (3, 1), (2, 2))[number % 3], draws.MASKS[number % len(draws.MASKS)]
        splits = (None, 2, 3)[number % 3]
        name = f"{kind} q{queries} d{dim} h{heads[0]}/{heads[1]} {mask} splits={splits}"
        name += " ragged" * (number % 2 == 1) + " valid" * (number % 4 == 3)
        draw = partial(_attended, number, queries, kind, dim, heads, mask, splits)
        yield Case("verify_attention", name, draw, (queries, kind, dim) in core)


def _attended(
    number: int, queries: int, kind: str, dim: int, heads: tuple[int, int], mask: str, splits: int | None
) -> Drawn:
    """Against the oracle in float64; what nobody sees is NaN."""
    drawn = draws.draw(
        number,
        queries=queries,
        prefix=(70, 130, 63, 1)[number % 4],
        heads=heads,
        dim=dim,
        mask=mask,
        scattered=number % 5 != 0,
        some_valid=number % 4 == 3,
        ragged=number % 2 == 1,
        layout=("plain", "by head", "interleaved")[number % 3] if dim % 8 == 0 else "plain",
        dtype=TYPES[kind],
        indexed=number % 2 == 0,
    )
    out, lse = (torch.from_numpy(x) for x in draws.oracle(drawn))
    draws.poison(drawn)

    def call(backend: str) -> tuple[Tensor, ...]:
        return verify_attention(*drawn.tensors(), **drawn.options(), splits=splits, backend=backend)

    return Drawn(call, (out, lse), {"fp16": 2e-3, "bf16": 2e-2, "fp32": 1e-5}[kind])


def logits(seed: int, rows: int, vocab: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    source = generator(seed)
    cond, uncond = ((3 * torch.randn(rows, vocab, generator=source)).to(dtype) for _ in range(2))
    return cond, uncond


SAMPLING: list[tuple[str, int, dict[str, Any]]] = [
    ("fp16", 1003, {"cfg_scale": 2.0, "temperature": 0.9, "top_k": 50, "top_p": 0.9}),
    ("bf16", 1000, {"cfg_scale": 3.0, "temperature": 1.0, "top_k": 17, "top_p": 0.7}),
    ("fp32", 257, {"cfg_scale": 1.5, "temperature": 0.7, "top_k": 0, "top_p": 0.95}),
    ("fp32", 1, {}),
    ("fp16", 30, {"temperature": 0.0}),
    ("bf16", 4099, {"cfg_scale": 2.0, "top_k": 1}),
    ("bf16", 16384, {"cfg_scale": 2.0, "temperature": 1.0, "top_k": 1000, "top_p": 0.9}),
    ("fp16", 40003, {"cfg_scale": 2.0, "temperature": 1.0, "top_k": 2000, "top_p": 0.95}),
    ("bf16", 65536, {"temperature": 1.0, "top_k": 0, "top_p": 0.8}),
]


def _rows(vocab: int) -> int:
    return 3 if vocab < 10_000 else 2


def _resampled() -> Iterator[Case]:
    for number, (kind, vocab, options) in enumerate(SAMPLING):
        for drawn in (True, False):
            name = f"{kind} V{vocab} {options}" + ("" if drawn else " noise given")
            yield Case("local_resample", name, partial(_tokens, number, drawn), number in (0, 2, 4) and drawn)
    for value in (torch.nan, torch.inf):
        yield Case("local_resample", f"row with {value}", partial(_bad_row, value), value != value)


def _tokens(number: int, drawn: bool) -> Drawn:
    """Tokens drawn by Philox, or by noise that is given."""
    kind, vocab, options = SAMPLING[number]
    rows = _rows(vocab)
    cond, uncond = logits(number, rows, vocab, TYPES[kind])
    source: dict[str, Tensor] = {"seed": torch.arange(rows) * 7919 + number, "position": torch.arange(rows) + 3}
    if not drawn:
        uniform = torch.rand(rows, vocab, generator=generator(99)).clamp(1e-6, 1 - 1e-6)
        source = {"gumbel": -torch.log(-torch.log(uniform))}
    guided = uncond if "cfg_scale" in options else None
    return by_reference(lambda backend: (local_resample(cond, guided, **options, **source, backend=backend),))


def _bad_row(value: float) -> Drawn:
    """A row that cannot be drawn from gives -1 and leaves the others alone."""
    cond = torch.randn(3, 515, generator=generator(5))
    cond[1, 500] = value
    good = torch.tensor([0, 2])
    rest = local_resample(cond[good], seed=good, position=good, top_k=5)
    expected = torch.tensor([int(rest[0]), -1, int(rest[1])])
    every = torch.arange(3)
    return Drawn(lambda b: (local_resample(cond, seed=every, position=every, top_k=5, backend=b),), (expected,), 0)


def _pooled() -> Iterator[Case]:
    for number, (kind, vocab, options) in enumerate(SAMPLING):
        for k in sorted({1, min(5, vocab), min(700, vocab)}):
            draw = partial(_masses, number, k)
            yield Case("pooled_mass", f"{kind} V{vocab} k{k} {options}", draw, number in (0, 4) and k == 5)


def _masses(number: int, k: int) -> Drawn:
    kind, vocab, options = SAMPLING[number]
    rows, source = _rows(vocab), generator(number)
    cond, uncond = logits(number + 50, rows, vocab, TYPES[kind])
    near = torch.zeros(vocab, k, dtype=torch.int32)
    tokens = cond.float().argmax(dim=1) if number % 2 else torch.randint(vocab, (rows,), generator=source)
    near[tokens] = torch.stack([torch.randperm(vocab, generator=source)[:k] for _ in range(rows)]).int()
    guided = uncond if "cfg_scale" in options else None
    return by_reference(
        lambda backend: tuple(pooled_mass(cond, guided, tokens, near, tau=0.01, **options, backend=backend)), 1e-5
    )


def _nearest() -> Iterator[Case]:
    shapes = [
        ("fp16", 2, 3, 5, 2, 8, 1000),
        ("bf16", 1, 5, 7, 1, 5, 1100),
        ("fp32", 1, 4, 3, 4, 16, 300),
        ("fp32", 2, 3, 3, 2, 33, 97),
        ("fp16", 1, 1, 1, 1, 64, 2),
    ]
    for number, (kind, batch, height, width, r, dim, vocab) in enumerate(shapes):
        name = f"{kind} {batch}x{height}x{width} r{r} d{dim} V{vocab}"
        draw = partial(codes, number, kind, (batch, height, width), r, dim, vocab)
        yield Case("nearest_code", name, draw, dim in (5, 33))


def codes(number: int, kind: str, shape: tuple[int, int, int], r: int, dim: int, vocab: int) -> Drawn:
    """Nearest codes of a map [batch, dim * r * r, height, width]; every second one lies channels last."""
    batch, height, width = shape
    source = generator(number)
    book = torch.nn.functional.normalize(torch.randn(vocab, dim, generator=source), dim=1)
    features = torch.randn(batch, dim * r * r, height, width, generator=source).to(TYPES[kind])
    table = neighbours(book, min(3, vocab))
    if number % 2:
        features = features.to(memory_format=torch.channels_last)
    return by_reference(lambda backend: shuffle_nearest(features, book, r, table, backend=backend))


def _writes() -> Iterator[Case]:
    shapes = [("fp16", "fp16", 4, 2, 64), ("bf16", "bf16", 3, 1, 100), ("fp32", "bf16", 2, 2, 20)]
    shapes.append(("bf16", "fp32", 2, 1, 6))
    for number, (kind, cache, heads, kv_heads, dim) in enumerate(shapes):
        for start in (None, 2):
            name = f"{kind} to {cache} h{heads}/{kv_heads} d{dim} start={start}"
            draw = partial(writes, number, kind, cache, (2, 5, heads, kv_heads, dim), start, number % 3 != 2)
            yield Case("kv_write", name, draw, start is None)


def writes(
    number: int, kind: str, cache: str, shape: tuple[int, int, int, int, int], start: int | None, turned: bool
) -> Drawn:
    """Keys and values [batch, tokens, kv_heads, dim] into a cache of 6 slots more; slots at random where no start."""
    batch, tokens, heads, kv_heads, dim = shape
    size, source = tokens + 6, generator(number)
    q, k, v = (
        torch.randn(batch, tokens, h, dim, generator=source).to(TYPES[kind]) for h in (heads, kv_heads, kv_heads)
    )
    caches = torch.randn(2, batch + 2, size, kv_heads, dim, generator=source).to(TYPES[cache])
    cache_rows = torch.randperm(batch + 2, generator=source)[:batch]
    slots = torch.stack([torch.randperm(size, generator=source)[:tokens] for _ in range(batch)])
    slots[-1, 2] = -1
    rotary = torch.randn(size + 2, dim // 2, 2, generator=source) if turned else None

    def call(backend: str) -> tuple[Tensor, ...]:
        k_cache, v_cache = caches.clone()
        out = kv_write(q, k, v, slots, rotary, k_cache, v_cache, start=start, cache_rows=cache_rows, backend=backend)
        return out, k_cache, v_cache

    return by_reference(call, {"fp16": 2e-3, "bf16": 2e-2, "fp32": 1e-6}[cache if kind == "fp32" else kind])


def _islands() -> Iterator[Case]:
    shapes = [
        (2, 9, 13, 0.1, 1),
        (1, 1, 1, 1.0, 0),
        (2, 16, 16, 0.03, 2),
        (1, 33, 31, 0.3, 0),
        (2, 5, 40, 0.0, 1),
        (1, 40, 50, 0.02, 3),
        (1, 64, 64, 0.5, 0),
    ]
    for batch, height, width, part, radius in shapes:
        for window in (None, 1, 3, width):
            name = f"{batch}x{height}x{width} {part} radius {radius} window {window}"
            draw = partial(grown, (batch, height, width), part, radius, window)
            yield Case("expand_islands", name, draw, height == 33 and window in (None, 3))


def grown(shape: tuple[int, int, int], part: float, radius: int, window: int | None) -> Drawn:
    """Islands of a map of which `part` is rejected."""
    rejected = torch.rand(shape, generator=generator(shape[1])) < part
    return by_reference(lambda backend: tuple(expand_islands(rejected, radius, window, backend=backend)))
