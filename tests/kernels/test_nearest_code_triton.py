"""Triton's nearest codes in the interpreter, against the torch reference and float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mulosd.kernels import BackendUnavailable, nearest_code, neighbours, shuffle_nearest

pytest.importorskip("triton")

pytestmark = pytest.mark.interpreter


def unit_rows(vocab: int, dim: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(vocab, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize(("vocab", "dim", "rows"), [(1, 4, 1), (5, 3, 70), (200, 8, 65), (1000, 64, 33), (129, 17, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_nearest_code_has_the_largest_cosine(vocab: int, dim: int, rows: int, dtype: torch.dtype) -> None:
    codebook = unit_rows(vocab, dim)
    features = (10 * torch.randn(rows, dim, generator=torch.Generator().manual_seed(1))).to(dtype)
    code = nearest_code(features, codebook, backend="triton")
    assert torch.equal(code, nearest_code(features, codebook))
    cosine = F.normalize(features.double(), dim=-1) @ codebook.double().T
    torch.testing.assert_close(cosine.gather(1, code[:, None])[:, 0], cosine.amax(1), atol=1e-6, rtol=0)


def test_codes_that_differ_by_3e_5_in_cosine_are_told_apart() -> None:
    """Pairs of codes on both sides of each feature, the farther one first: plain tf32 errs by about 5e-4."""
    features = unit_rows(40, 8)
    aside = unit_rows(40, 8, seed=1)
    aside = F.normalize(aside - (aside * features).sum(-1, keepdim=True) * features, dim=-1)
    near, far = (math.cos(a) * features + math.sin(a) * aside for a in (0.1, 0.1003))
    codebook = torch.stack([far, near], dim=1).reshape(80, 8)
    gap = ((near - far) * features).sum(-1)
    assert (gap > 2.5e-5).all() and (gap < 3.5e-5).all()
    assert torch.equal(nearest_code(features, codebook, backend="triton"), 2 * torch.arange(40) + 1)


def test_equal_codes_give_the_lower_index_across_tiles() -> None:
    """Codes of four halves, so that every similarity is exact: the interpreter's product rounds by position."""
    rows = torch.rand(200, 8, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    codebook = torch.unique(torch.where(rows < 2, 0.5, torch.where(rows < 4, -0.5, 0.0)), dim=0)[:70].repeat(3, 1)
    code = nearest_code(4 * codebook, codebook, backend="triton")
    assert len(codebook) == 210
    assert torch.equal(code, torch.arange(70).repeat(3))
    assert nearest_code(torch.zeros(2, 8), codebook, backend="triton").tolist() == [0, 0]


@pytest.mark.parametrize("r", [1, 2, 4])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_shuffle_reads_the_features_where_they_lie(r: int, layout: torch.memory_format) -> None:
    codebook = unit_rows(130, 3)
    features = torch.randn(2, 3 * r * r, 5, 4, generator=torch.Generator().manual_seed(r)).to(memory_format=layout)
    expected = nearest_code(F.pixel_shuffle(features, r).permute(0, 2, 3, 1), codebook)
    assert torch.equal(shuffle_nearest(features, codebook, r, backend="triton"), expected)
    for k in (1, 70):
        table = neighbours(codebook, k)
        code, sets = shuffle_nearest(features, codebook, r, table, backend="triton")
        assert torch.equal(code, expected)
        assert torch.equal(sets, table[expected])
        assert torch.equal(sets, shuffle_nearest(features, codebook, r, table)[1])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_bad_features_give_minus_one(value: float) -> None:
    codebook = unit_rows(20, 4)
    features = torch.randn(1, 4, 3, 3)
    features[0, 1, 2, 0] = value
    code, sets = shuffle_nearest(features, codebook, 1, neighbours(codebook, 2), backend="triton")
    bad = torch.zeros(1, 3, 3, dtype=torch.bool)
    bad[0, 2, 0] = True
    assert torch.equal(code == -1, bad)
    assert torch.equal((sets == -1).all(-1), bad)


def test_leading_axes_and_reasons_to_decline() -> None:
    codebook = unit_rows(20, 8)
    assert nearest_code(codebook[3], codebook, backend="triton").tolist() == 3
    assert nearest_code(torch.zeros(0, 8), codebook, backend="triton").shape == (0,)
    code = nearest_code(codebook.view(4, 5, 8), codebook, backend="triton")
    assert torch.equal(code, torch.arange(20).view(4, 5))
    for features, codes, message in (
        (codebook, codebook.half(), "codebook must be float32"),
        (codebook.double(), codebook, "float64"),
        (torch.zeros(1, 65), torch.zeros(2, 65), "at most 64"),
    ):
        with pytest.raises(BackendUnavailable, match=message):
            nearest_code(features, codes, backend="triton")
