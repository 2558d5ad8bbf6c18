"""The server under faults, as tools/chaos_serve.py has it at length."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from .conftest import load

for needed in ("fastapi", "uvicorn", "sse_starlette", "prometheus_client"):
    pytest.importorskip(needed)
pytestmark = pytest.mark.slow


@pytest.fixture
def tool() -> Any:
    return load("chaos_serve")


def test_no_request_is_lost_while_engines_fail_and_die(tool: Any) -> None:
    report = tool.Storm(seed=1, rate=0.05, lives=50).run(100, clients=6)
    assert (report["faults"], report["sent"], report["lost"]) == ([], 100, 0)
    assert report["injected"]["thread: killed"] == report["servers"] == 2
    assert all(report[outcome] for outcome in ("finished", "aborted", "failed", "refused"))


def test_what_is_lost_or_another_image_is_found(tool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    storm = tool.Storm(rate=0.0)
    outcomes = tool.Running.outcomes
    monkeypatch.setattr(tool.Running, "outcomes", lambda self: outcomes(self) - Counter({"finished": 1}))
    monkeypatch.setattr(storm, "reference", lambda *asked: b"another")
    report = storm.run(12, clients=3)
    assert report["lost"] == 1 and any("were sent" in fault for fault in report["faults"])
    assert any("not the one made alone" in fault for fault in report["faults"])


@pytest.mark.parametrize("leak", [0, 1])
def test_what_requests_leave_is_counted(tool: Any, monkeypatch: pytest.MonkeyPatch, leak: int) -> None:
    from mulosd.serve.admission import Admission

    asked = 0
    add = Admission.places_for

    def counted(self: Any, count: int) -> Any:
        nonlocal asked
        asked += 1
        return add(self, count)

    monkeypatch.setattr(Admission, "places_for", counted)
    monkeypatch.setattr(tool.sys, "getallocatedblocks", lambda: 10**6 + leak * asked)
    lines: list[str] = []
    report = tool.left(20, clients=2, told=lines.append)
    # Those that are refused take no place.
    slopes = [report[kind]["blocks a request"] for kind in ("finished", "aborted", "refused")]
    assert slopes == pytest.approx([leak, leak, 0], abs=0.2)
    assert len(report["faults"]) == 2 * leak and "refused: 21 of 20" in lines[-1]
    assert report["outcomes"]["failed"] == 0 and sum(report["outcomes"].values()) == 3 * 31
