"""Fixtures of the server's tests; without the extra `serve`, httpx and openai none of them is collected."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from live import Live, Told

NEEDED = ("fastapi", "uvicorn", "sse_starlette", "prometheus_client", "httpx", "openai")
MISSING = [name for name in NEEDED if find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING else []


def pytest_report_header() -> str | None:
    return f"tests/serve: left out, {', '.join(MISSING)} not installed (pip install '.[test]')" if MISSING else None


@pytest.fixture(autouse=True)
def logs() -> Iterator[logging.Logger]:
    """The server's log as it was before the test."""
    log = logging.getLogger("mulosd.serve")
    handlers, propagate, level = log.handlers, log.propagate, log.level
    yield log
    log.handlers, log.propagate = handlers, propagate
    log.setLevel(level)


@pytest.fixture
def start() -> Iterator[Callable[..., Live]]:
    """`start(engine=…, max_waiting=…)` starts a server on a free port; it is stopped behind the test."""
    from live import Live, Told

    from mulosd.serve import Settings

    torch.set_num_threads(1)
    lives: list[Live] = []

    def begin(engine: Told | None = None, **settings: Any) -> Live:
        live = Live(engine or Told(), Settings(**{"port": 0, "max_running": 4, "warmup": False, **settings}))
        lives.append(live)
        return live

    yield begin
    for live in lives:
        live.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    """One server for tests that leave it as it was."""
    from live import Live, Told

    from mulosd.serve import Settings

    torch.set_num_threads(1)
    live = Live(Told(), Settings(port=0, max_running=4))
    yield live
    live.stop()


@pytest.fixture
def told() -> Callable[..., Told]:
    from live import Told

    return Told


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of such a family."""
    from live import calibrated

    return calibrated().save(tmp_path_factory.mktemp("families") / "random")


@pytest.fixture(scope="session")
def slow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one whose images take some tenths of a second each, token by token, on any machine."""
    from live import calibrated

    return calibrated((8, 16, 32)).save(tmp_path_factory.mktemp("families") / "slow")
