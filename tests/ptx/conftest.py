"""The machine for tests, where compilers are there to feed it; and what runs only when it is asked for."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from .build import missing
from .host import Gpu

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked `exhaustive`, unless the expression of -m speaks of it."""
    if "exhaustive" in (config.getoption("-m") or ""):
        return
    left_out = [item for item in items if HERE in item.path.parents and item.get_closest_marker("exhaustive")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def gpu(backend: str, capability: int) -> Gpu:
    """A device of this capability, on which the backend can run."""
    reason = missing() if backend == "cuda" else None
    if backend == "triton" and find_spec("triton") is None:
        reason = "triton is not installed: it compiles the Triton kernels"
    if reason is not None:
        pytest.skip(reason)
    return Gpu(capability, native=backend == "cuda")
