"""Triton's `fused_linear` in the interpreter, against the definition in float64."""

from __future__ import annotations

import pytest
import torch
from linear_cases import CASES, call_of, exact, rand

from mulosd.kernels import BackendUnavailable, fused_linear

pytest.importorskip("triton")

pytestmark = pytest.mark.interpreter


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.float16, 5e-3)])
def test_the_kernel_is_the_definition(case: tuple[int, int, int, str, str], dtype: torch.dtype, error: float) -> None:
    x, weight, options = call_of(case, dtype)
    out = fused_linear(x, weight, **options, backend="triton")
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), exact(x, weight, options), atol=error, rtol=error)


def test_strided_inputs_are_read_where_they_lie_and_padding_is_not() -> None:
    wide, weight = rand(4, 100, seed=1), rand(20, 30, seed=2)
    wide[:, 30:] = torch.nan
    more = rand(4, 50, seed=3)
    more[:, 20:] = torch.nan
    out = fused_linear(wide[:, :30], weight, residual=more[:, :20], backend="triton")
    torch.testing.assert_close(out, more[:, :20] + wide[:, :30] @ weight.T)


def test_many_tokens_are_declined() -> None:
    with pytest.raises(BackendUnavailable, match="up to 64 tokens, got 65"):
        fused_linear(rand(65, 8, seed=1), rand(6, 8, seed=2), backend="triton")
