"""The CUDA and Triton backends on a device against the torch references on the host, and against each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mulosd.kernels import gumbel, local_resample, nearest_code, neighbours, pooled_mass, shuffle_nearest
from mulosd.kernels.registry import OPS

pytestmark = pytest.mark.gpu

OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.7, "top_k": 40},
    {"cfg_scale": 3.0, "top_k": 1000},
    {"top_p": 0.9},
    {"cfg_scale": 2.0, "temperature": 0.9, "top_k": 1000, "top_p": 0.8},
]
SHAPES = [(1, 512), (7, 1001), (3, 16_384), (2, 24_576), (2, 65_536)]


@pytest.fixture(params=["cuda", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    for op in ("local_resample", "pooled_mass", "nearest_code"):
        if reason := OPS[op].unusable(request.param):
            pytest.skip(reason)
    return str(request.param)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("rows", "vocab"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_agrees_with_the_reference(
    backend: str, options: dict[str, Any], rows: int, vocab: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(vocab)
    cond, uncond = (2 * torch.randn(rows, vocab, generator=generator).to(dtype) for _ in range(2))
    noise = gumbel(torch.arange(rows), torch.arange(rows), vocab, 0)
    expected = local_resample(cond, uncond, noise, **options)
    device = [t.cuda() for t in (cond, uncond, noise)]
    token = local_resample(*device, **options, backend=backend)
    assert torch.equal(token.cpu(), expected)

    table = torch.randint(vocab, (vocab, 20), generator=generator, dtype=torch.int32)
    mass, accept = pooled_mass(cond, uncond, expected, table, tau=0.01, **options)
    got = pooled_mass(*device[:2], token, table.cuda(), tau=0.01, **options, backend=backend)
    torch.testing.assert_close(got.mass.cpu(), mass, atol=2e-6, rtol=1e-4)
    clear = (mass - 0.01).abs() > 1e-5
    assert torch.equal(got.accept.cpu()[clear], accept[clear])


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("vocab", [16_384, 65_536])
def test_backends_draw_the_same_tokens(options: dict[str, Any], vocab: int) -> None:
    for name in ("cuda", "triton"):
        if reason := OPS["local_resample"].unusable(name):
            pytest.skip(reason)
    generator = torch.Generator().manual_seed(vocab)
    cond, uncond = (2 * torch.randn(64, vocab, generator=generator).cuda().bfloat16() for _ in range(2))
    drawn = {"seed": torch.arange(64).cuda() - 9, "position": torch.arange(64).cuda() * 77}
    tokens = [local_resample(cond, uncond, **drawn, **options, backend=name) for name in ("cuda", "triton")]
    assert torch.equal(*tokens)


def test_draws_the_same_noise(backend: str) -> None:
    seed, position = torch.tensor([0, -1, 2**40]), torch.tensor([5, 2**32 - 1, 0])
    for vocab in (512, 40_000):
        cond = torch.zeros(3, vocab)
        expected = local_resample(cond, seed=seed, position=position)
        token = local_resample(cond.cuda(), seed=seed.cuda(), position=position.cuda(), backend=backend)
        assert torch.equal(token.cpu(), expected)


def test_rows_with_too_many_survivors(backend: str) -> None:
    """All 65,536 entries within a thousandth, so that leading bits tell nothing."""
    cond = 1 + 1e-3 * torch.rand(2, 65_536, generator=torch.Generator().manual_seed(0))
    noise = gumbel(torch.arange(2), torch.arange(2), 65_536, 0)
    for top_k in (1, 1000, 60_000):
        token = local_resample(cond.cuda(), None, noise.cuda(), top_k=top_k, backend=backend)
        assert torch.equal(token.cpu(), local_resample(cond, None, noise, top_k=top_k))


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.5}])
@pytest.mark.parametrize("vocab", [600, 65_536])
def test_bad_rows_are_marked(backend: str, options: dict[str, Any], vocab: int) -> None:
    cond = torch.zeros(4, vocab, device="cuda")
    cond[0, vocab - 1], cond[1, 0], cond[2], cond[3, 1] = float("nan"), float("inf"), -float("inf"), 30.0
    assert local_resample(cond, None, torch.zeros_like(cond), **options, backend=backend).tolist() == [-1, -1, -1, 1]
    table = torch.arange(vocab, dtype=torch.int32, device="cuda")[:, None]
    mass, accept = pooled_mass(cond, None, torch.ones(4).long().cuda(), table, tau=0.1, **options, backend=backend)
    assert mass[:3].tolist() == [0.0] * 3 and mass[3] > 0.99
    assert accept.tolist() == [False, False, False, True]


def test_whole_vocabulary_has_mass_one(backend: str) -> None:
    table = neighbours(F.normalize(torch.randn(64, 4), dim=-1), 64).cuda()
    token = torch.zeros(9, dtype=torch.int64, device="cuda")
    result = pooled_mass(torch.randn(9, 64, device="cuda"), None, token, table, tau=1.0, backend=backend)
    assert (result.mass == 1.0).all()
    assert result.accept.all()


@pytest.mark.parametrize(("vocab", "dim"), [(5, 3), (1000, 17), (16_384, 8), (65_536, 16), (4096, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nearest_code(backend: str, vocab: int, dim: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(vocab)
    codebook = F.normalize(torch.randn(vocab, dim, generator=generator), dim=-1)
    features = (4 * torch.randn(2, dim * 4, 5, 7, generator=generator)).to(dtype)
    table = torch.randint(vocab, (vocab, 33), dtype=torch.int32, generator=generator)
    code, sets = shuffle_nearest(features.cuda(), codebook.cuda(), 2, table.cuda(), backend=backend)
    rows = F.pixel_shuffle(features.double(), 2).permute(0, 2, 3, 1).reshape(-1, dim)
    cosine = F.normalize(rows, dim=-1) @ codebook.double().T
    chosen = cosine.gather(1, code.cpu().view(-1, 1))[:, 0]
    torch.testing.assert_close(chosen, cosine.amax(1), atol=1e-6, rtol=0)
    assert torch.equal(sets.cpu(), table[code.cpu()])
    equal = nearest_code(codebook[:70].repeat(2, 1).cuda(), codebook[:70].repeat(3, 1).cuda(), backend=backend).cpu()
    assert torch.equal(equal, torch.arange(len(codebook[:70])).repeat(2))


def replay(call: Callable[[], Tensor]) -> Tensor:
    """What `call` gives when captured in a CUDA graph and replayed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    out.fill_(77)
    graph.replay()
    torch.cuda.synchronize()
    return out


@pytest.mark.parametrize("vocab", [4096, 40_000])
def test_graphs_capture_the_calls(backend: str, vocab: int) -> None:
    generator = torch.Generator().manual_seed(0)
    cond = torch.randn(4, vocab, generator=generator).cuda()
    noise, token = torch.randn(4, vocab, generator=generator).cuda(), torch.arange(4).cuda()
    codebook = F.normalize(torch.randn(vocab, 8, generator=generator), dim=-1).cuda()
    table = torch.randint(vocab, (vocab, 9), dtype=torch.int32).cuda()
    calls: list[Callable[[], Tensor]] = [
        lambda: local_resample(cond, None, noise, top_k=50, top_p=0.9, backend=backend),
        lambda: pooled_mass(cond, None, token, table, tau=0.1, top_k=50, backend=backend).mass,
        lambda: nearest_code(noise.view(-1, 8), codebook, backend=backend),
    ]
    for call in calls:
        assert torch.equal(replay(call), call())
