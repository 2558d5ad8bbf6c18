"""Triton's `fused_linear` on a device, against the definition in float64."""

from __future__ import annotations

import pytest
import torch
from linear_cases import CASES, call_of, exact, rand

from mulosd.kernels import fused_linear

pytestmark = pytest.mark.gpu


def on(device: str, options: dict[str, object]) -> dict[str, object]:
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-5), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
def test_the_kernel_is_the_definition(case: tuple[int, int, int, str, str], dtype: torch.dtype, error: float) -> None:
    x, weight, options = call_of(case, dtype)
    out = fused_linear(x.cuda(), weight.cuda(), **on("cuda", options), backend="triton")  # type: ignore[arg-type]
    torch.testing.assert_close(out.cpu().double(), exact(x, weight, options), atol=error, rtol=error)


def test_fp8_weights() -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("fp8 needs sm_89")
    x, weight = rand(3, 160, seed=1).bfloat16(), rand(48, 160, seed=2)
    scale = weight.abs().amax(1) / 448
    coarse = (weight / scale[:, None]).to(torch.float8_e4m3fn)
    out = fused_linear(x.cuda(), coarse.cuda(), scale=scale.cuda(), backend="triton")
    expected = x.double() @ (coarse.double() * scale.double()[:, None]).T
    torch.testing.assert_close(out.cpu().double(), expected, atol=4e-2, rtol=4e-2)
