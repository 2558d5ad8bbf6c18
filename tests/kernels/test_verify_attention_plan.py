"""How attention is cut into programs, and who serves which call; shapes only, no device."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import attention_cases as cases
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mulosd.kernels import verify_attention
from mulosd.kernels.verify_attention import cuda, flash
from mulosd.kernels.verify_attention.call import Call
from mulosd.kernels.verify_attention.plan import (
    MAX_SPLITS,
    PARTIAL_SHARE,
    cdiv,
    choose_splits,
    preferred,
    split_length,
    tile_rows,
)


def test_tile_rows() -> None:
    assert [tile_rows(n) for n in (1, 16, 17, 32, 33, 64, 65, 128, 1000)] == [16, 16, 32, 32, 64, 64, 128, 128, 128]
    assert tile_rows(1000, largest=32) == 32


def test_triton_goes_first_where_it_has_instructions_that_the_cuda_kernel_lacks() -> None:
    first = {
        (rows, half, arch): preferred(rows, half, arch)[0]
        for rows in (1, 127, 128)
        for half in (True, False)
        for arch in (80, 89, 90, 100, 120)
    }
    assert {case for case, backend in first.items() if backend == "triton"} == {(128, True, 90), (128, True, 100)}
    assert all(sorted(preferred(rows, True, 90)) == ["cpu", "cuda", "torch", "triton"] for rows in (1, 128))


def test_the_order_of_an_op_decides_which_able_backend_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["mulosd.kernels.verify_attention"]  # the name itself is the function
    op = module.OP
    case = cases.draw(0, queries=128, dtype=torch.float16)
    call = Call(*case.tensors(), **case.options())
    monkeypatch.setattr(type(op), "reason", lambda self, name, call: None)
    order = ["triton", "cuda", "torch"]
    monkeypatch.setattr(module, "preferred", lambda *_: tuple(order))
    assert op.select(None, call) == "triton" and op.select("cuda", call) == "cuda"
    order.reverse()
    assert op.select(None, call) == "torch"


def h200(heads: int, rows: int, keys: int) -> int:
    tile = tile_rows(rows)
    return choose_splits(
        heads=heads, rows=rows, keys=keys, tile_rows=tile, tile_keys=64, processors=132, resident=3 if tile < 128 else 1
    )


def test_few_programs_are_split_until_the_device_is_full() -> None:
    assert 4 <= h200(40, 64, 4096) <= 10  # 40 programs for 396 places
    assert h200(40, 1, 4096) > 4
    assert h200(1, 16, 65536) == MAX_SPLITS


def test_full_devices_and_short_caches_are_not_split() -> None:
    assert h200(2560, 64, 4096) == 1
    assert h200(40, 1024, 4096) == 1  # partial results would outweigh keys and values
    assert h200(40, 64, 256) == 1
    assert h200(2, 1, 64) == 1


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("keys", [1024, 2048, 4096])
@pytest.mark.parametrize("queries", [16, 64, 128, 256])
def test_partial_results_stay_within_a_quarter_of_keys_and_values(dim: int, keys: int, queries: int) -> None:
    """In bytes, of 20 heads and two sequences on an H200: caches in 16 bits, partial results in 32, moved twice."""
    splits = h200(40, queries, keys)
    caches = 2 * 40 * keys * dim * 2
    partial = 0 if splits == 1 else 2 * splits * 40 * queries * (dim + 1) * 4
    assert partial <= 0.26 * caches  # with the log-sum-exps a little above the quarter


def test_a_share_of_bytes_does_not_cost_the_long_caches_their_splits() -> None:
    assert h200(40, 64, 4096) * 40 >= 2 * 132


@given(
    heads=st.integers(1, 4000),
    rows=st.integers(1, 4000),
    keys=st.integers(1, 10**5),
    tile=st.sampled_from([4, 16, 64, 128]),
    tile_keys=st.sampled_from([32, 64, 128]),
    processors=st.sampled_from([1, 64, 132]),
)
def test_bounds(heads: int, rows: int, keys: int, tile: int, tile_keys: int, processors: int) -> None:
    sizes = {"heads": heads, "rows": rows, "keys": keys, "tile_rows": tile, "tile_keys": tile_keys}
    splits = choose_splits(**sizes, processors=processors)
    assert 1 <= splits <= min(MAX_SPLITS, cdiv(keys, tile_keys))
    assert splits == 1 or 2 * rows * splits <= PARTIAL_SHARE * keys
    assert splits == choose_splits(**sizes, processors=processors)
    length = split_length(keys, splits, tile_keys)
    assert length % tile_keys == 0
    assert length * splits >= keys


Arguments = dict[str, Any]


@pytest.fixture
def plain() -> Arguments:
    """A call that flash-attn can serve, by the names of the reference."""
    case = cases.draw(1, queries=3, prefix=9, heads=(4, 2), dim=8, mask="none", scattered=False, dtype=torch.float16)
    names = ("q", "k_cache", "v_cache", "slots", "valid")
    rest = {"kv_len": 19, "start": 9, "scale": 0.3, "block": None, "counts": None, "return_lse": True, "splits": None}
    return dict(zip(names, case.tensors(), strict=True)) | rest


@pytest.fixture
def fake_flash(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """flash-attn as its documentation has it: the mask of `causal` is aligned to the last key."""
    calls: list[tuple[int, ...]] = []

    def flash_attn_func(
        q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, causal: bool, return_attn_probs: bool
    ) -> Any:
        assert causal
        calls.append(tuple(k.shape))
        queries, keys = q.shape[1], k.shape[1]
        mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
        repeat = q.shape[2] // k.shape[2]
        scores = torch.einsum("bihd,bjhd->bhij", q.float(), k.float().repeat_interleave(repeat, 2)) * softmax_scale
        scores = scores.masked_fill(~mask, -torch.inf)
        out = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v.float().repeat_interleave(repeat, 2)).to(q.dtype)
        return (out, scores.logsumexp(-1), None) if return_attn_probs else out

    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_func=flash_attn_func))  # type: ignore[arg-type]
    return calls


def test_flash_attn_gives_what_the_reference_gives(plain: Arguments, fake_flash: list[tuple[int, ...]]) -> None:
    assert flash.decline(Call(*plain.values())) is None
    tensors, options = list(plain.values())[:5], dict(list(plain.items())[5:])
    expected = verify_attention(*tensors, **options)
    for got, want in zip(flash.run(Call(*plain.values())), expected, strict=True):
        torch.testing.assert_close(got, want, atol=2e-3, rtol=1e-3)
    assert fake_flash == [(2, 12, 2, 8)]
    out, lse = flash.run(Call(**(plain | {"return_lse": False})))
    torch.testing.assert_close(out, expected[0], atol=2e-3, rtol=1e-3)
    assert lse.numel() == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"start": None}, "start"),
        ({"valid": torch.ones(2, 19, dtype=torch.bool)}, "valid"),
        ({"block": torch.zeros(1, 3, 1, dtype=torch.int32)}, "block"),
        ({"counts": torch.ones(2, dtype=torch.int32), "splits": 2}, "no counts and no splits"),
        ({"q": torch.zeros(2, 3, 4, 8)}, "float16"),
        ({"q": torch.zeros(2, 3, 4, 100).half()}, "multiple of 8"),
    ],
)
def test_flash_attn_declines(plain: Arguments, change: Arguments, reason: str) -> None:
    text = flash.decline(Call(**(plain | change)))
    assert text is not None and reason in text


def tensors(q: Tensor, cache: Tensor, scale: float | None = None) -> Call:
    """A call of which only layouts and the scale matter."""
    slots = torch.zeros(q.shape[:2], dtype=torch.int64)
    return Call(q, cache, cache, slots, None, 1, None, scale, None, None, False, None)


@pytest.mark.parametrize(
    ("q", "cache", "reason"),
    [
        (torch.zeros(1, 17, 2, 64), torch.zeros(1, 9, 2, 64), "tensor cores, which need float16"),
        (torch.zeros(1, 1, 34, 64), torch.zeros(1, 9, 2, 64), "= 17 rows, more than 16"),
        (torch.zeros(1, 17, 2, 116).half(), torch.zeros(1, 9, 2, 116).half(), "above 112 must be a multiple of 8"),
        (torch.zeros(1, 17, 2, 100).half(), torch.zeros(1, 9, 2, 101).half()[..., 1:], "multiples of 4"),
        (torch.zeros(1, 1, 2, 132), torch.zeros(1, 9, 2, 132), "head size"),
        (torch.zeros(1, 1, 2, 10), torch.zeros(1, 9, 2, 10), "head size"),
        (torch.zeros(1, 1, 2, 64), torch.zeros(1, 9, 2, 64).half(), "share one"),
        (torch.zeros(1, 1, 2, 64), torch.zeros(1, 9, 64, 2).transpose(2, 3), "contiguous last axis"),
        (torch.zeros(1, 1, 2, 64), torch.zeros(1, 9, 2, 65)[..., 1:], "multiples of 4"),
    ],
)
def test_the_cuda_kernel_declines(q: Tensor, cache: Tensor, reason: str) -> None:
    text = cuda.decline_shapes(tensors(q, cache))
    assert text is not None and reason in text


def test_on_tensor_cores_the_scale_must_be_positive() -> None:
    q, cache = torch.zeros(1, 17, 2, 64).half(), torch.zeros(1, 9, 2, 64).half()
    assert cuda.decline_shapes(tensors(q, cache)) is None
    assert cuda.decline_shapes(tensors(q, cache, 0.3)) is None
    assert "positive" in (cuda.decline_shapes(tensors(q, cache, 0.0)) or "")
    assert cuda.decline_shapes(tensors(q[:, :16], cache, -1.0)) is None


def test_the_draft_starts_on_a_tile_of_its_own() -> None:
    """What the kernel on tensor cores is told: splits of whole tiles, committed slots and draft padded apart."""
    told: list[list[int]] = []
    case = cases.draw(1, queries=70, prefix=65, heads=(1, 1), mask="ones", dtype=torch.float16)
    for splits, expected in ((1, (1, 256)), (2, (2, 128)), (3, (2, 128)), (9, (4, 64))):
        call = Call(*case.tensors(), **case.options(), splits=splits)
        cuda.launch(call, 4, lambda _, shape, *__: told.append(shape), 0)
        assert tuple(told[-1][-2:]) == expected
        assert told[-1][2] == 1


def test_the_cuda_kernel_takes_odd_strides_of_axes_of_length_one() -> None:
    cache = torch.zeros(1, 9, 1, 64).as_strided((1, 9, 1, 64), (1, 64, 3, 1))
    assert cuda.decline_shapes(tensors(torch.zeros(1, 1, 4, 64), cache)) is None


def test_the_cuda_backend_prefers_flash_attn_where_it_can_serve(
    plain: Arguments, fake_flash: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[bool] = []
    monkeypatch.setattr(flash, "unusable", lambda: None)
    monkeypatch.setattr(cuda, "_processors", lambda _: 1)
    monkeypatch.setattr(cuda.native, "stream", lambda _: 0)
    monkeypatch.setattr(
        cuda.native, "module", lambda: SimpleNamespace(verify_attention=lambda *_: launched.append(True))
    )
    cuda.run(Call(**plain))
    assert (len(fake_flash), len(launched)) == (1, 0)
    cuda.run(Call(**(plain | {"splits": 1})))
    assert (len(fake_flash), len(launched)) == (1, 1)


def test_without_flash_attn_the_reasons_of_both_are_given(plain: Arguments) -> None:
    text = cuda.decline(Call(**plain))
    assert text is not None and "CUDA device" in text
