"""What every test may rely on."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a CUDA device where there is none."""
    wanted = [item for item in items if item.get_closest_marker("gpu")]
    if not wanted:
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in wanted:
        item.add_marker(pytest.mark.skip(reason="no CUDA device"))
