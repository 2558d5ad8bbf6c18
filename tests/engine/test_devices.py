"""What the engine sets for the process while it computes on a GPU, and puts back."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from mulosd.engine.devices import exact_float32
from mulosd.engine.dtypes import settled_dtype

GPU = torch.device("cuda")


def found() -> list[str]:
    return [torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision]


@pytest.fixture
def rounded() -> Iterator[list[str]]:
    """A caller who wants TF32 everywhere."""
    settings = [torch.backends.cuda.matmul, torch.backends.cudnn.conv]
    before = found()
    for setting in settings:
        setting.fp32_precision = "tf32"
    yield ["tf32", "tf32"]
    for setting, value in zip(settings, before, strict=True):
        setting.fp32_precision = value


def test_float32_is_exact_inside_and_the_callers_outside(rounded: list[str]) -> None:
    with exact_float32(GPU):
        with exact_float32(GPU):
            assert found() == ["ieee", "ieee"]
        assert found() == ["ieee", "ieee"], "the inner one is no end"
    assert found() == rounded
    with pytest.raises(ZeroDivisionError), exact_float32(GPU):
        _ = 1 / 0
    assert found() == rounded
    with exact_float32(torch.device("cpu")):
        assert found() == rounded


def test_engines_that_overlap_in_time_leave_nothing_behind(rounded: list[str]) -> None:
    """The first to begin ends first."""
    begun, ended = threading.Event(), threading.Event()

    def second() -> None:
        with exact_float32(GPU):
            begun.set()
            ended.wait(10)

    other = threading.Thread(target=second)
    with exact_float32(GPU):
        other.start()
        assert begun.wait(10)
    assert found() == ["ieee", "ieee"], "the other still computes"
    ended.set()
    other.join()
    assert found() == rounded


def test_the_default_type_is_that_of_the_device() -> None:
    assert settled_dtype(None, "cpu") == torch.float32
    assert settled_dtype(None, "cuda:1") == torch.bfloat16 == settled_dtype(None, GPU)
    assert settled_dtype("float16", "cuda") == torch.float16
    with pytest.raises(ValueError, match="float32, bfloat16, float16"):
        settled_dtype("int8", "cpu")
