"""What every test may rely on."""

from __future__ import annotations

import os

import pytest

# What is fastest on the machine of the tests is nothing to them: they compute in one way, and those of other ways ask.
os.environ.setdefault("MULOSD_LINEAR", "torch")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the Triton interpreter's tests to a process of their own, and skip what needs a CUDA device without one.

    Triton reads TRITON_INTERPRET when a kernel is decorated: interpreted and compiled kernels do not mix.
    """
    interpreting = os.environ.get("TRITON_INTERPRET", "0") == "1"
    others = [item for item in items if bool(item.get_closest_marker("interpreter")) != interpreting]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if bool(item.get_closest_marker("interpreter")) == interpreting]
    wanted = [item for item in items if item.get_closest_marker("gpu")]
    if not wanted:
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in wanted:
        item.add_marker(pytest.mark.skip(reason="no CUDA device"))
