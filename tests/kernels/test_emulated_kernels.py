"""The CUDA sources of csrc/, compiled for the host and run thread by thread, against the torch references.

This finds wrong indices, reductions, selections and missing barriers without a GPU; it says nothing about speed.
"""

from __future__ import annotations

import ctypes
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mulosd.kernels import gumbel, local_resample, pooled_mass, shuffle_nearest
from mulosd.kernels.upsample_pool.nearest_code_cuda import choose_split

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

Pointer, Int, Float = ctypes.c_void_p, ctypes.c_int, ctypes.c_float


class LogitParams(ctypes.Structure):
    _fields_ = [
        ("cond", Pointer),
        ("uncond", Pointer),
        ("cond_stride", ctypes.c_int64),
        ("uncond_stride", ctypes.c_int64),
        ("type", Int),
        ("rows", Int),
        ("vocab", Int),
        ("cfg_scale", Float),
        ("temperature", Float),
        ("top_k", Int),
        ("top_p", Float),
        ("in_shared", Int),
    ]


class ResampleParams(ctypes.Structure):
    _fields_ = [
        ("logits", LogitParams),
        ("gumbel", Pointer),
        ("seed", Pointer),
        ("position", Pointer),
        ("purpose", ctypes.c_uint32),
        ("token", Pointer),
    ]


class PoolParams(ctypes.Structure):
    _fields_ = [
        ("logits", LogitParams),
        ("token", Pointer),
        ("neighbours", Pointer),
        ("k", Int),
        ("tau", Float),
        ("mass", Pointer),
        ("accept", Pointer),
    ]


class NearestParams(ctypes.Structure):
    _fields_ = [
        ("features", Pointer),
        *((name, ctypes.c_int64) for name in ("batch_stride", "channel_stride", "row_stride", "column_stride")),
        *((name, Int) for name in ("type", "height", "width", "r")),
        ("codebook", Pointer),
        ("code_stride", ctypes.c_int64),
        ("vocab", Int),
        ("dim", Int),
        ("neighbours", Pointer),
        ("k", Int),
        ("cells", ctypes.c_int64),
        ("code", Pointer),
        ("sets", Pointer),
        ("splits", Int),
        ("split_codes", Int),
        ("partial", Pointer),
        ("partial_code", Pointer),
    ]


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def logit_params(
    cond: Tensor,
    uncond: Tensor | None,
    cfg_scale: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> LogitParams:
    stride = 0 if uncond is None else uncond.stride(0)
    shape = (TYPES[cond.dtype], *cond.shape)
    sampling = (cfg_scale, temperature, top_k, top_p)
    return LogitParams(address(cond), address(uncond), cond.stride(0), stride, *shape, *sampling, 0)


def emulate_resample(
    library: ctypes.CDLL,
    cond: Tensor,
    uncond: Tensor | None,
    noise: Tensor | None,
    seed: Tensor | None = None,
    position: Tensor | None = None,
    purpose: int = 0,
    room: int = 65536,
    **options: float,
) -> Tensor:
    token = torch.full((len(cond),), -99)
    logits = logit_params(cond, uncond, **options)  # type: ignore[arg-type]
    params = ResampleParams(logits, address(noise), address(seed), address(position), purpose, address(token))
    library.emulate_local_resample(ctypes.byref(params), room)
    return token


def emulate_mass(
    library: ctypes.CDLL,
    cond: Tensor,
    uncond: Tensor | None,
    token: Tensor,
    table: Tensor,
    tau: float,
    room: int = 65536,
    **options: float,
) -> tuple[Tensor, Tensor]:
    mass, accept = torch.full((len(cond),), math.nan), torch.full((len(cond),), 77, dtype=torch.uint8)
    logits = logit_params(cond, uncond, **options)  # type: ignore[arg-type]
    params = PoolParams(logits, address(token), address(table), table.shape[1], tau, address(mass), address(accept))
    library.emulate_pooled_mass(ctypes.byref(params), room)
    return mass, accept


def logits_of(kind: str, rows: int, vocab: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(vocab)
    values = 3 * torch.randn(rows, vocab, generator=generator)
    if kind == "ties":
        values = values.round().clamp(-1, 1)
        values[values == 0] *= -1  # zeros of both signs
    if kind == "sparse" and vocab > 1:
        values[torch.rand(rows, vocab, generator=generator) < 0.7] = -math.inf
        values[:, vocab // 2] = -20.0
    return values.to(dtype)


OPTIONS = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.5, "top_k": 1},
    {"top_k": 3},
    {"temperature": 2.0, "top_k": 300},
    {"top_p": 0.9},
    {"top_p": 1e-6},
    {"temperature": 0.7, "top_k": 40, "top_p": 0.6},
]


@pytest.mark.parametrize("vocab", [1, 5, 513, 2500])
@pytest.mark.parametrize("kind", ["normal", "ties", "sparse"])
def test_resample_by_given_noise(library: ctypes.CDLL, vocab: int, kind: str) -> None:
    cond = logits_of(kind, 3, vocab)
    noise = gumbel(torch.arange(3), torch.arange(3), vocab, 0)
    for options in OPTIONS:
        expected = local_resample(cond, None, noise, **options)  # type: ignore[arg-type]
        assert torch.equal(emulate_resample(library, cond, None, noise, **options), expected), options


@pytest.mark.parametrize("cfg_scale", [0.25, 1.0, 3.5, -1.0])
def test_resample_with_guidance_and_row_strides(library: ctypes.CDLL, cfg_scale: float) -> None:
    both = torch.randn(4, 2, 700)
    cond, uncond = both[:, 0], both.flip(1)[:, 0]
    noise = gumbel(torch.zeros(4, dtype=torch.int64), torch.arange(4), 700, 1)
    options = {"cfg_scale": cfg_scale, "temperature": 0.8, "top_k": 50}
    expected = local_resample(cond, uncond, noise, **options)  # type: ignore[arg-type]
    assert torch.equal(emulate_resample(library, cond, uncond, noise, **options), expected)


def test_guidance_of_scale_one_is_the_condition_itself(library: ctypes.CDLL) -> None:
    """Beside an uncond of 1e8 the plain formula would round every difference of cond away."""
    cond, uncond = torch.arange(64.0)[None], torch.full((1, 64), 1e8)
    token = emulate_resample(library, cond, uncond, torch.zeros(1, 64), cfg_scale=1.0)
    assert token.tolist() == local_resample(cond, uncond, torch.zeros(1, 64)).tolist() == [63]


@pytest.mark.parametrize("vocab", [7, 512, 1030])
def test_resample_by_its_own_philox(library: ctypes.CDLL, vocab: int) -> None:
    """Flat logits: the noise alone decides, so one wrong word or counter changes the tokens."""
    seed, position = torch.tensor([0, -1, 2**40 + 5]), torch.tensor([0, 2**32 - 1, 77])
    cond = torch.zeros(3, vocab)
    for purpose in (0, 1):
        expected = local_resample(cond, seed=seed, position=position, purpose=purpose)
        assert torch.equal(emulate_resample(library, cond, None, None, seed, position, purpose), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(library: ctypes.CDLL, dtype: torch.dtype) -> None:
    cond, uncond = logits_of("normal", 2, 600, dtype), logits_of("ties", 2, 600, dtype)
    noise = gumbel(torch.zeros(2, dtype=torch.int64), torch.arange(2), 600, 0)
    expected = local_resample(cond, uncond, noise, cfg_scale=2.0, top_k=40)
    assert torch.equal(emulate_resample(library, cond, uncond, noise, cfg_scale=2.0, top_k=40), expected)
    table = torch.randint(600, (600, 9), dtype=torch.int32)
    mass, _ = emulate_mass(library, cond, uncond, expected, table, 0.1, cfg_scale=2.0, top_k=40)
    reference = pooled_mass(cond, uncond, expected, table, tau=0.1, cfg_scale=2.0, top_k=40)
    torch.testing.assert_close(mass, reference.mass, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("vocab", [1, 5, 513, 2500])
@pytest.mark.parametrize("kind", ["normal", "ties", "sparse"])
def test_pooled_mass(library: ctypes.CDLL, vocab: int, kind: str) -> None:
    cond, uncond = logits_of(kind, 3, vocab), logits_of("normal", 3, vocab)
    generator = torch.Generator().manual_seed(1)
    token = torch.randint(vocab, (3,), generator=generator)
    for k in sorted({1, min(50, vocab), vocab}):
        table = torch.stack([torch.randperm(vocab, generator=generator)[:k] for _ in range(vocab)]).int()
        for options in OPTIONS[1:4] + OPTIONS[5:] if k < vocab else OPTIONS[:1]:
            other = None if kind == "sparse" else uncond  # guidance between two -inf is NaN
            full = {"cfg_scale": 1.5} | options
            mass, accept = emulate_mass(library, cond, other, token, table, 0.2, **full)
            expected = pooled_mass(cond, other, token, table, tau=0.2, **full)  # type: ignore[arg-type]
            torch.testing.assert_close(mass, expected.mass, atol=2e-6, rtol=1e-5)
            assert torch.equal(accept.bool(), mass >= 0.2)
            assert ((accept == 0) | (accept == 1)).all()


def bad_rows(vocab: int) -> Tensor:
    cond = torch.zeros(5, vocab)
    cond[0, vocab - 1] = math.nan
    cond[1, 0] = math.inf
    cond[2] = -math.inf
    cond[3, 1] = 9.0
    return cond


@pytest.mark.parametrize("vocab", [2048, 2050, 9215])
def test_rows_that_end_in_registers(library: ctypes.CDLL, vocab: int) -> None:
    """With room for 1,024 entries only, the rest of the row lies in registers; tokens and masses stay the same."""
    cond, uncond = logits_of("normal", 2, vocab), logits_of("ties", 2, vocab)
    seed, position = torch.tensor([3, -4]), torch.tensor([9, 10])
    token = torch.tensor([vocab - 1, 5])
    table = torch.randint(vocab, (vocab, 40), dtype=torch.int32, generator=torch.Generator().manual_seed(2))
    options: dict[str, float]
    for options in (
        {"cfg_scale": 2.0},
        {"cfg_scale": 2.0, "top_k": 70, "top_p": 0.7},
        {"top_p": 0.8},
        {"temperature": 0},
    ):
        drawn = local_resample(cond, uncond, seed=seed, position=position, **options)  # type: ignore[arg-type]
        got = emulate_resample(library, cond, uncond, None, seed, position, room=1024, **options)
        assert torch.equal(got, drawn), options
        mass, _ = emulate_mass(library, cond, uncond, token, table, 0.1, room=1024, **options)
        expected = pooled_mass(cond, uncond, token, table, tau=0.1, **options)  # type: ignore[arg-type]
        torch.testing.assert_close(mass, expected.mass, atol=2e-6, rtol=2e-5)


def test_rough_noise_stays_within_its_bound(library: ctypes.CDLL) -> None:
    """Every 23 bits that a word is read by, in steps of a prime, and both ends, where the logarithms are steepest."""
    words = torch.cat([torch.arange(0, 2**23, 61), torch.arange(999), 2**23 - 1 - torch.arange(99_999)]) << 9
    narrow = torch.from_numpy(words.numpy().astype("uint32").view("int32"))
    rough, exact = torch.empty(2, len(words))
    library.emulate_noise(*(Pointer(t.data_ptr()) for t in (narrow, rough, exact)), len(words))
    assert (rough - exact).abs().max() < 0.002 / 4


ODD_ROWS = {
    "far below": lambda row: row.where(torch.arange(len(row)) % 3 > 0, -1e4),
    "far above": lambda row: row.where(torch.arange(len(row)) != 77, 60.0),
    "close": lambda row: 1e-4 * row,
    "wide": lambda row: 200 * row,
    "mostly impossible": lambda row: row.where(torch.arange(len(row)) % 50 == 0, -math.inf),
    "coarse": lambda row: row.round(decimals=1),
}


@pytest.mark.parametrize("kind", ODD_ROWS)
def test_cuts_of_odd_rows_are_those_of_the_reference(library: ctypes.CDLL, kind: str) -> None:
    """Whether bins can tell what stays, or keys must: outliers, tiny and huge ranges, ties."""
    source = torch.Generator().manual_seed(0)
    cond = ODD_ROWS[kind](3 * torch.randn(2600, generator=source))[None]
    noise = -torch.log(-torch.log(torch.rand(1, 2600, generator=source).clamp(1e-6, 1 - 1e-6)))
    for options in ({"top_k": 40}, {"top_k": 2500}, {"top_p": 0.8}, {"top_k": 900, "top_p": 0.9}):
        expected = local_resample(cond, None, noise, **options)  # type: ignore[arg-type]
        assert torch.equal(emulate_resample(library, cond, None, noise, **options), expected), options


@pytest.mark.parametrize("top_p", [0.25, 0.2501, 0.5, 0.99])
@pytest.mark.parametrize("room", [4, 65536])
def test_top_p_keeps_the_lower_index_at_ties(library: ctypes.CDLL, top_p: float, room: int) -> None:
    """The noise prefers each entry in turn: it is drawn if, and only if, it stays."""
    cond, noise = torch.zeros(8, 8), 1000 * torch.eye(8)
    cond[:, 1::2] = -0.0
    token = emulate_resample(library, cond, None, noise, room=room, top_p=top_p)
    assert torch.equal(token, local_resample(cond, None, noise, top_p=top_p))
    assert {int(t) for i, t in enumerate(token) if t == i} == set(range(math.ceil(8 * top_p)))


@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"top_k": 2}, {"top_p": 0.3}])
def test_bad_rows_are_marked(library: ctypes.CDLL, options: dict[str, float]) -> None:
    cond, noise = bad_rows(600), torch.zeros(5, 600)
    assert emulate_resample(library, cond, None, noise, **options).tolist() == [-1, -1, -1, 1, 0]
    table = torch.arange(600, dtype=torch.int32)[:, None].expand(600, 2).contiguous()
    token = torch.tensor([0, 0, 0, 1, 600])  # the last is out of range
    mass, accept = emulate_mass(library, cond, None, token, table[:, :1].contiguous(), 0.001, **options)
    assert mass[[0, 1, 2, 4]].tolist() == [0.0] * 4
    assert mass[3] > 0.9
    assert accept.tolist() == [0, 0, 0, 1, 0]


def emulate_nearest(
    library: ctypes.CDLL, features: Tensor, codebook: Tensor, r: int, table: Tensor | None, processors: int = 1
) -> tuple[Tensor, Tensor]:
    batch, _, height, width = features.shape
    k = 0 if table is None else table.shape[1]
    code = torch.full((batch, height * r, width * r), -99)
    sets = torch.full((*code.shape, k), -99, dtype=torch.int32)
    map_of = (address(features), *features.stride(), TYPES[features.dtype], height * r, width * r, r)
    codes = (address(codebook), codebook.stride(0), *codebook.shape)
    outputs = (code.numel(), address(code), address(sets))
    splits, split_codes = choose_split(code.numel(), *codebook.shape, processors)
    partial = torch.full((splits, code.numel()), math.nan)
    partial_code = torch.full((splits, code.numel()), -99, dtype=torch.int32)
    split = (splits, split_codes, address(partial), address(partial_code))
    library.emulate_nearest_code(ctypes.byref(NearestParams(*map_of, *codes, address(table), k, *outputs, *split)))
    return code, sets


@pytest.mark.parametrize(("vocab", "dim"), [(1, 3), (600, 8), (515, 16), (300, 20), (130, 64)])
@pytest.mark.parametrize("r", [1, 2])
def test_nearest_code(library: ctypes.CDLL, vocab: int, dim: int, r: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    codebook = torch.nn.functional.normalize(torch.randn(vocab, dim, generator=generator), dim=-1)
    codebook[vocab // 2 :] = codebook[: vocab - vocab // 2].clone()  # every code twice: the lower index wins
    features = 5 * torch.randn(2, dim * r * r, 3, 7, generator=generator)
    table = torch.randint(vocab, (vocab, 9), generator=generator, dtype=torch.int32)
    layouts = (features, features.to(memory_format=torch.channels_last), features.half(), features.bfloat16())
    for processors, given in zip((1, 9, 40, 999), layouts, strict=True):  # as many splits as fill so many processors
        expected = shuffle_nearest(given, codebook, r)
        code, sets = emulate_nearest(library, given, codebook, r, table, processors)
        assert torch.equal(code, expected)
        assert torch.equal(sets, table[expected])
    assert torch.equal(emulate_nearest(library, features, codebook, r, None)[0], shuffle_nearest(features, codebook, r))


@pytest.mark.parametrize(("cells", "vocab", "dim"), [(1, 1, 1), (1024, 16384, 8), (4096, 16384, 8), (40, 1000, 33)])
@pytest.mark.parametrize("processors", [1, 7, 132])
def test_splits_of_the_codes_fill_the_device_and_none_is_empty(
    cells: int, vocab: int, dim: int, processors: int
) -> None:
    splits, codes = choose_split(cells, vocab, dim, processors)
    assert (splits - 1) * codes < vocab <= splits * codes
    blocks = math.ceil(cells / (64 if dim <= 16 else 32))
    assert splits == 1 or blocks * splits <= processors
    if (cells, vocab, processors) == (1024, 16384, 132):
        assert blocks * splits == 128


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_bad_features_give_minus_one(library: ctypes.CDLL, value: float) -> None:
    codebook = torch.nn.functional.normalize(torch.randn(20, 4), dim=-1)
    features = torch.randn(1, 4, 3, 3)
    features[0, 1, 2, 0] = value
    codebook = codebook.repeat(100, 1)
    table = torch.zeros(2000, 2, dtype=torch.int32)
    code, sets = emulate_nearest(library, features, codebook, 1, table, processors=4)
    bad = torch.zeros(1, 3, 3, dtype=torch.bool)
    bad[0, 2, 0] = True
    assert torch.equal(code == -1, bad)
    assert torch.equal((sets == -1).all(-1), bad)
    assert emulate_nearest(library, torch.zeros(1, 4, 1, 1), codebook, 1, None)[0].item() == 0


def test_the_emulator_can_fail(library: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other noise gives other tokens: the comparisons above do not hold by themselves."""
    cond = torch.zeros(8, 512)
    noise: Callable[[int], Tensor] = lambda purpose: gumbel(torch.arange(8), torch.arange(8), 512, purpose)  # noqa: E731
    assert not torch.equal(
        emulate_resample(library, cond, None, noise(0)), emulate_resample(library, cond, None, noise(1))
    )
