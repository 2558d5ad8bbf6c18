"""Engines that fail: everybody gets an answer that tells what to do, and the server goes on, or says that it cannot."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import torch

from mulosd.engine.decoding import Serial


def events(answer: Any) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]


def errors_of(live: Any, stream: bool, count: int = 3) -> list[tuple[int, dict[str, Any], Any]]:
    """Status, error and headers of requests that were under way when the fault came."""
    with ThreadPoolExecutor(count) as threads:
        asked = [
            threads.submit(live.post, seed=s, n=2, stream=stream, mulosd={"decoder": "serial"}) for s in range(count)
        ]
        answers = [one.result(60) for one in asked]
    found = []
    for answer in answers:
        body = events(answer)[-1] if answer.headers["content-type"].startswith("text/event-stream") else answer.json()
        found.append((answer.status_code, body["error"], answer.headers))
    return found


FAULTS: list[tuple[Any, int, str]] = [
    (lambda: ZeroDivisionError("secret detail of /root/mulosd"), 500, "internal_error"),
    (lambda: ValueError("secret detail of /root/mulosd"), 500, "internal_error"),
    (lambda: torch.OutOfMemoryError("secret detail"), 503, "out_of_memory"),
    (lambda: MemoryError("secret detail"), 503, "out_of_memory"),
]


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize(("fault", "status", "code"), FAULTS, ids=["bug", "value", "cuda memory", "memory"])
def test_a_step_that_raises(start: Any, told: Any, fault: Any, status: int, code: str, stream: bool) -> None:
    engine = told()
    live = start(engine)
    wanted = live.post(seed=3).json()["data"][0]["b64_json"]
    once = iter([fault()])

    def first() -> BaseException:
        engine.fault = None
        return next(once)

    engine.fault = first
    [(got, error, headers)] = errors_of(live, stream, 1)
    assert got == (200 if stream else status)
    assert (error["code"], error["type"]) == (code, "server_error") and "secret" not in error["message"]
    if code == "internal_error":
        assert headers["x-request-id"] in error["message"]
    if not stream:
        assert headers["x-should-retry"] == "false", "three tries would fail alike"
    live.at_rest()
    assert live.post(seed=3).json()["data"][0]["b64_json"] == wanted
    assert live.outcomes() == {"finished": 2, "aborted": 0, "failed": 1, "refused": 0}
    assert live.http.get("/health").status_code == live.http.get("/health/ready").status_code == 200


def test_the_client_raises_what_ends_a_stream(start: Any, told: Any) -> None:
    engine = told()
    live = start(engine)
    api = openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)
    seen = []

    def read() -> None:
        extra = {"mulosd": {"decoder": "mulo:scale=2:rows_per_cycle=2"}}
        for event in api.images.generate(prompt="apple", stream=True, partial_images=3, extra_body=extra):
            seen.append(event.type)
            engine.fault = lambda: torch.OutOfMemoryError("now")

    with pytest.raises(openai.APIError) as caught:
        read()
    assert seen and set(seen) == {"image_generation.partial_image"} and caught.value.code == "out_of_memory"
    engine.fault = None
    live.at_rest()


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("fault", [lambda: SystemExit("the worker ends"), lambda: torch.AcceleratorError("gone")])
def test_an_engine_that_dies(start: Any, told: Any, fault: Any, stream: bool) -> None:
    engine = told()
    live = start(engine)
    engine.fault = fault
    for status, error, _ in errors_of(live, stream):
        assert status in ((200, 503) if stream else (503,)) and error["code"] == "engine_dead"
    live.until(lambda: not live.state.under_way)
    health, ready = live.http.get("/health"), live.http.get("/health/ready")
    assert (health.status_code, health.json()) == (503, {"status": "dead: random"})
    assert (ready.status_code, ready.json()) == (503, {"status": "dead"})
    answer = live.post()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_dead")
    assert "mulosd_ready 0.0" in live.http.get("/metrics").text


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_a_deadline(start: Any, told: Any, stream: bool) -> None:
    engine = told()
    live = start(engine, request_timeout=0.3)
    for held in (engine.gate, engine.adding):
        held.clear()
        [(status, error, headers)] = errors_of(live, stream, 1)
        held.set()
        assert (status, error["code"]) == (200 if stream else 503, "deadline") and "0.3 s" in error["message"]
        assert stream or headers["x-should-retry"] == "false"
        live.at_rest()
    assert live.outcomes()["failed"] == 2


def test_a_budget_that_no_request_fits_is_a_400(start: Any, told: Any) -> None:
    small = told()
    rows = {grid: small.scheduler.bytes_of(Serial(grid), 1) for grid in (2, 4, 8)}
    live = start(told(kv_budget=rows[8]), decoder="serial:grid=4", qualities={})
    assert live.post().status_code == live.post(mulosd={"decoder": "serial"}).status_code == 200
    answer = live.post(mulosd={"decoder": "serial"}, guidance_scale=30)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "mulosd"), "both branches do not fit"
    with pytest.raises(ValueError, match="budget"):
        start(told(kv_budget=rows[2]))


def test_answers_that_fail_to_encode_are_told_as_such(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    live = start()

    def fail(*args: Any) -> bytes:
        raise OSError("encoder error -2")

    with monkeypatch.context() as patch:
        patch.setattr("mulosd.serve.images.encode", fail)
        answer = live.post()
        assert answer.status_code == 500 and "encoder" not in answer.text
        [error] = events(live.post(stream=True))
        assert error["error"]["code"] == "internal_error"
    live.at_rest()
    assert live.post().status_code == 200
    assert live.outcomes() == {"finished": 1, "aborted": 0, "failed": 2, "refused": 0}
