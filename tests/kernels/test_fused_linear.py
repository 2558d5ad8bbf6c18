"""`fused_linear`: its reference against the definition in float64, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from linear_cases import CASES, call_of, exact, rand

from mulosd.kernels import BackendUnavailable, fused_linear


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
def test_the_reference_is_the_definition(
    case: tuple[int, int, int, str, str], dtype: torch.dtype, error: float
) -> None:
    x, weight, options = call_of(case, dtype)
    out = fused_linear(x, weight, **options)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), exact(x, weight, options), atol=error, rtol=error)


def test_fp8_weights_are_dequantised() -> None:
    weight = rand(6, 8, seed=0)
    scale = weight.abs().amax(1) / 448
    coarse = (weight / scale[:, None]).to(torch.float8_e4m3fn)
    expected = rand(3, 8, seed=1) @ (coarse.float() * scale[:, None]).T
    torch.testing.assert_close(fused_linear(rand(3, 8, seed=1), coarse, scale=scale), expected)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"weight": rand(5, 9, seed=0)}, "share K"),
        ({"weight": rand(5, 8, seed=0), "gated": True}, "as many gates"),
        ({"weight": rand(6, 8, seed=0).char()}, "need a scale"),
        ({"scale": torch.ones(6)}, "take no scale"),
        ({"weight": rand(6, 8, seed=0).char(), "scale": torch.ones(6).half()}, "float32"),
        ({"weight": rand(6, 8, seed=0).half()}, "must be torch.float32"),
        ({"bias": torch.ones(5)}, r"bias must be \[6\]"),
        ({"norm": torch.ones(6)}, r"norm must be \[8\]"),
        ({"residual": torch.ones(6)}, r"residual must be torch.float32 \[2, 6\]"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, object], word: str) -> None:
    arguments = {"x": rand(2, 8, seed=1), "weight": rand(6, 8, seed=2)} | change
    with pytest.raises(ValueError, match=word):
        fused_linear(**arguments)  # type: ignore[arg-type]


def test_a_backend_that_is_not_there_says_why() -> None:
    with pytest.raises(BackendUnavailable, match="no such backend"):
        fused_linear(rand(2, 8, seed=1), rand(6, 8, seed=2), backend="cuda")
