"""Attention on a device: every backend against the float64 oracle, splits, CUDA graphs, and addresses past 32 bits."""

from __future__ import annotations

import attention_cases as cases
import pytest
import torch

from mulosd.kernels import masks, verify_attention
from mulosd.kernels.verify_attention import OP, cuda, flash, verify_attention_reference
from mulosd.kernels.verify_attention.call import Call

pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
ROWS = (1, 4, 24, 70, 200)


def need(backend: str) -> None:
    reason = OP.unusable(backend)
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("dim", [64, 96, 100, 128])
@pytest.mark.parametrize("heads", [(2, 2), (8, 2)])
def test_agrees_with_the_oracle(backend: str, dtype: torch.dtype, dim: int, heads: tuple[int, int]) -> None:
    need(backend)
    for queries in ROWS:
        if backend == "cuda" and dtype == torch.float32 and queries * heads[0] // heads[1] > cuda.FEW_ROWS:
            continue
        for i, mask in enumerate(("none", "causal", "random", "holes")):
            case = cases.draw(
                queries + i,
                queries=queries,
                prefix=150,
                heads=heads,
                dim=dim,
                mask=mask,
                scattered=i != 1,
                some_valid=i == 2,
                ragged=i >= 2,
                layout="by head" if i == 3 else "plain",
                dtype=dtype,
            )
            expected, expected_lse = (torch.from_numpy(a) for a in cases.oracle(case))
            cases.poison(case)
            device = case.to("cuda")
            for splits in (None, 1, 3):
                out, lse = verify_attention(*device.tensors(), **device.options(), splits=splits, backend=backend)
                torch.testing.assert_close(out.cpu().double(), expected, atol=TOLERANCE[dtype], rtol=0)
                torch.testing.assert_close(lse.cpu().double(), expected_lse, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("queries", [4, 70])
def test_results_repeat_bit_for_bit(backend: str, queries: int) -> None:
    need(backend)
    case = cases.draw(1, queries=queries, prefix=3000, mask="random", dtype=torch.bfloat16).to("cuda")
    first = verify_attention(*case.tensors(), **case.options(), splits=8, backend=backend)
    for _ in range(10):
        again = verify_attention(*case.tensors(), **case.options(), splits=8, backend=backend)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("queries", [4, 70])
def test_a_cuda_graph_replays_with_new_contents(backend: str, queries: int) -> None:
    need(backend)
    one, two = (
        cases.draw(seed, queries=queries, prefix=500, mask="random", some_valid=True, ragged=True, dtype=torch.float16)
        for seed in (1, 2)
    )
    static = one.to("cuda")
    options = static.options() | {"splits": 4}
    verify_attention(*static.tensors(), **options, backend=backend)  # compiles outside of the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = verify_attention(*static.tensors(), **options, backend=backend)
    for name in ("q", "k", "v", "slots", "valid", "counts"):
        getattr(static, name).copy_(getattr(two, name))
    options["block"].copy_(masks.pack(two.mask))
    graph.replay()
    expected, expected_lse = (torch.from_numpy(a) for a in cases.oracle(two))
    torch.testing.assert_close(out.cpu().double(), expected, atol=4e-3, rtol=0)
    torch.testing.assert_close(lse.cpu().double(), expected_lse, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_caches_past_two_to_the_31_elements(backend: str) -> None:
    """The second request lies 2.5 * 2**30 elements behind the first, and its last slot as far again."""
    need(backend)
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of free memory")
    slot_stride, size = 1 << 21, 1300
    memory = torch.zeros(2 * size * slot_stride + 64, dtype=torch.float16, device="cuda")
    k = memory.as_strided((2, size, 1, 64), (size * slot_stride, slot_stride, 64, 1))
    v = memory.as_strided((2, size, 1, 64), (size * slot_stride, slot_stride, 64, 1))
    k.normal_()
    q = torch.randn(2, 4, 1, 64, device="cuda", dtype=torch.float16)
    slots = torch.tensor([[1299, 0, 1100, 1296]], device="cuda").expand(2, 4)
    block = masks.pack(torch.eye(4, dtype=torch.bool))[None].cuda()
    out = verify_attention(q, k, v, slots, kv_len=1250, block=block, backend=backend)
    expected = verify_attention(
        *(t.cpu().float() for t in (q, k, v)), slots.cpu(), kv_len=1250, block=block.cpu(), backend="torch"
    )
    torch.testing.assert_close(out.cpu().float(), expected, atol=4e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("heads", [(4, 4), (8, 1)])
@pytest.mark.parametrize("dim", [64, 100, 128])
def test_tensor_cores_are_as_exact_as_triton(dtype: torch.dtype, heads: tuple[int, int], dim: int) -> None:
    """Both round the weights to 16 bits and sum in float32, so neither may be much further from the oracle."""
    need("cuda")
    need("triton")
    case = cases.draw(5, queries=100, prefix=1000, heads=heads, dim=dim, mask="islands", some_valid=True, dtype=dtype)
    expected = torch.from_numpy(cases.oracle(case)[0])
    device = case.to("cuda")
    error = {}
    for backend in ("cuda", "triton"):
        out, _ = verify_attention(*device.tensors(), **device.options(), splits=2, backend=backend)
        error[backend] = float((out.cpu().double() - expected).square().mean().sqrt())
    assert error["cuda"] <= 1.5 * error["triton"]


def test_flash_attn_agrees() -> None:
    reason = flash.unusable()
    if reason is not None:
        pytest.skip(reason)
    for dtype in (torch.float16, torch.bfloat16):
        case = cases.draw(3, queries=33, prefix=100, heads=(4, 2), mask="none", scattered=False, dtype=dtype)
        case = case.to("cuda")
        call = Call(*case.tensors(), **case.options())
        assert flash.decline(call) is None
        for got, want in zip(flash.run(call), verify_attention_reference(*call), strict=True):
            torch.testing.assert_close(got, want, atol=TOLERANCE[dtype], rtol=1e-3)
