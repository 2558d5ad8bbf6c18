"""A small cluster of Ray on this machine; where Ray is not installed none of its tests is collected."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

NEEDED = ("ray", "fastapi", "uvicorn", "sse_starlette", "prometheus_client", "httpx", "openai")
MISSING = [name for name in NEEDED if find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING else []


def pytest_report_header() -> str | None:
    return f"tests/ray: left out, {', '.join(MISSING)} not installed (pip install '.[test,ray]')" if MISSING else None


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A cluster that pretends to have cores enough for every actor at once."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray gives up on what has not begun within some seconds, of which a busy machine takes more.
    os.environ["RAY_raylet_start_wait_time_s"] = "300"  # noqa: SIM112
    for name in ("READY_CHECK", "HEALTH_CHECK"):
        os.environ[f"RAY_SERVE_PROXY_{name}_TIMEOUT_S"] = "120"
    ray.init("local", num_cpus=8, num_gpus=0, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
