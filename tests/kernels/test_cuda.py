"""The CUDA backends on a device against the torch references on the host."""

from __future__ import annotations

import pytest
import torch

from mulosd.kernels import gumbel, local_resample, native, neighbours, pooled_mass

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(native.unusable() is not None, reason=str(native.unusable()))]

OPTIONS = [{}, {"temperature": 0.0}, {"temperature": 0.7, "top_k": 40}, {"cfg_scale": 3.0, "top_k": 1000}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("rows", "vocab"), [(1, 512), (7, 1001), (3, 16384), (2, 24576)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_agrees_with_the_reference(options: dict[str, float], rows: int, vocab: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(vocab)
    cond, uncond = (torch.randn(rows, vocab, generator=generator).to(dtype) for _ in range(2))
    noise = gumbel(torch.arange(rows), torch.arange(rows), vocab, 0)
    expected = local_resample(cond, uncond, noise, **options)  # type: ignore[arg-type]
    device = [t.cuda() for t in (cond, uncond, noise)]
    token = local_resample(*device, **options, backend="cuda")  # type: ignore[misc, arg-type]
    assert torch.equal(token.cpu(), expected)

    table = torch.randint(vocab, (vocab, 20), generator=generator, dtype=torch.int32)
    mass, accept = pooled_mass(cond, uncond, expected, table, tau=0.01, **options)  # type: ignore[arg-type]
    got = pooled_mass(*device[:2], token, table.cuda(), tau=0.01, **options, backend="cuda")  # type: ignore[arg-type]
    torch.testing.assert_close(got.mass.cpu(), mass, atol=1e-6, rtol=1e-4)
    clear = (mass - 0.01).abs() > 1e-5
    assert torch.equal(got.accept.cpu()[clear], accept[clear])


def test_draws_the_same_noise() -> None:
    seed, position = torch.tensor([0, -1, 2**40]), torch.tensor([5, 2**32 - 1, 0])
    cond = torch.zeros(3, 512)
    expected = local_resample(cond, seed=seed, position=position)
    token = local_resample(cond.cuda(), seed=seed.cuda(), position=position.cuda(), backend="cuda")
    assert torch.equal(token.cpu(), expected)


def test_whole_vocabulary_has_mass_one() -> None:
    table = neighbours(torch.nn.functional.normalize(torch.randn(64, 4), dim=-1), 64).cuda()
    token = torch.zeros(9, dtype=torch.int64, device="cuda")
    result = pooled_mass(torch.randn(9, 64, device="cuda"), None, token, table, tau=1.0, backend="cuda")
    assert (result.mass == 1.0).all()
    assert result.accept.all()
