"""The made-up device for tests, where it can be made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from . import guard

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip this folder where the device cannot be made up."""
    reason = guard.missing()
    for item in items:
        if reason is not None and HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
