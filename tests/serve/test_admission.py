"""Places, refusals and counts: nothing is computed for who is refused, and every request is counted once."""

from __future__ import annotations

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import openai
import pytest

from mulosd.serve.admission import Admission
from mulosd.serve.errors import ApiError


def test_places_are_taken_at_once_and_given_back_whatever_happens() -> None:
    places = Admission(running=2, waiting=1)
    with places.places_for(2):
        with pytest.raises(ApiError) as caught, places.places_for(2):
            raise AssertionError("there is one place left")
        assert caught.value.status_code == 429 and int(caught.value.headers["retry-after"]) >= 1  # type: ignore[index]
        with suppress(ZeroDivisionError), places.places_for(1):
            assert places.taken == 3
            raise ZeroDivisionError
        assert places.taken == 2
    assert places.taken == 0
    with pytest.raises(ApiError) as never, places.places_for(4):
        pass
    assert never.value.status_code == 400, "trying again cannot help"


def test_waiting_grows_with_the_queue_and_with_slow_images() -> None:
    places, slow = Admission(2, 1000), Admission(2, 1000)
    for _ in range(50):
        slow.took(10)
    with places.places_for(100), slow.places_for(100):
        assert slow.retry_after > places.retry_after >= 25
    assert places.retry_after == 1 and slow.retry_after <= 60


def test_a_full_queue_refuses_before_any_work_and_loses_nothing(start: Any, told: Any) -> None:
    engine = told(max_running=1)
    live = start(engine, max_running=1, max_waiting=1)
    engine.gate.clear()
    with ThreadPoolExecutor(2) as threads:
        under_way = [threads.submit(live.post, seed=s) for s in range(2)]
        live.until(lambda: live.state.under_way == 2)
        for stream in (False, True):
            refused = live.post(seed=9, stream=stream)
            error = refused.json()["error"]
            assert (refused.status_code, error["type"], error["code"]) == (429, "rate_limit_error", "queue_full")
            assert 1 <= int(refused.headers["retry-after"]) <= 60
        engine.gate.set()
        assert [one.result(60).status_code for one in under_way] == [200, 200]
    live.at_rest()
    assert live.outcomes() == {"finished": 2, "aborted": 0, "failed": 0, "refused": 2}
    assert engine.scheduler._number == 2, "a request that is refused never reached the engine"


def test_the_official_client_tries_again_and_succeeds(start: Any, told: Any) -> None:
    engine = told(max_running=1)
    live = start(engine, max_running=1, max_waiting=0)
    engine.gate.clear()
    first = threading.Thread(target=lambda: live.post(seed=1))
    first.start()
    live.until(lambda: live.state.under_way == 1)
    threading.Timer(0.3, engine.gate.set).start()
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=5) as api:
        assert api.images.generate(prompt="apple").data[0].b64_json
    first.join(30)
    assert live.outcomes()["refused"] >= 1


def test_every_request_that_was_sent_is_counted_once(start: Any, told: Any) -> None:
    """sent = finished + aborted + failed + refused, under load with a small queue, faults and cancellations."""
    engine = told(max_running=2)
    live = start(engine, max_running=2, max_waiting=3, request_timeout=20)
    live.state.families["random"].engine.engine.pause = 0.001
    bodies: list[dict[str, Any]] = [
        {"seed": 1}, {"seed": 1, "stream": True, "partial_images": 1}, {"prompt": "zebra"}, {"n": 0}, {"n": 2},
        {"model": "nope"}, {"seed": 2, "mulosd": {"decoder": "serial"}}, {"mulosd": {"decoder": "jacobi"}},
    ]  # fmt: skip
    raised = iter([True])

    def ask(i: int) -> int:
        if i == 20 and next(raised, False):

            def once() -> BaseException:
                engine.fault = None
                return ZeroDivisionError("once")

            engine.fault = once
        if i % 7 == 3:
            live.http.post(f"/v1/requests/request-{i - 3}/cancel")
        body = {"prompt": "apple", **bodies[i % len(bodies)]}
        answer = live.http.post("/v1/images/generations", json=body, headers={"x-request-id": f"request-{i}"})
        return answer.status_code

    with ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(ask, range(64)))
    live.at_rest()
    live.until(lambda: sum(live.outcomes().values()) >= 64)  # an answer arrives before it is counted
    outcomes = live.outcomes()
    assert sum(outcomes.values()) == len(statuses) == 64, outcomes
    assert outcomes["finished"] > 0 and outcomes["refused"] >= 24
    assert outcomes["refused"] >= sum(status in (400, 404, 429) for status in statuses)
    total = sum(
        sample.value
        for metric in live.state.metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "mulosd_http_responses_total" and sample.labels["route"] == "/v1/images/generations"
    )
    assert total == 64


def test_metrics_say_what_images_say_of_themselves(start: Any) -> None:
    live = start()
    told = [live.post(seed=s, n=2, mulosd={"decoder": "mulo:scale=2:tau=0.05"}).json() for s in (0, 5)]
    images = [image["mulosd"]["stats"] for answer in told for image in answer["data"]]
    assert live.metric("images_total", family="random", decoder="mulo") == 4
    assert live.metric("generation_tokens_total", family="random") == 4 * 64
    for role in ("draft", "verify", "resample"):
        for metric, field in (("forwards_total", "forwards"), ("fed_tokens_total", "fed")):
            told_in_all = sum(s[field].get(role, 0) for s in images)
            assert live.metric(metric, family="random", role=role) == told_in_all > 0
    assert live.metric("resampled_tokens_total", family="random") == round(sum(64 * s["coverage"] for s in images))
    assert live.metric("rejected_tokens_total", family="random") == round(sum(64 * s["rejection"] for s in images))
    assert live.metric("engine_steps_total", family="random") == live.engine.steps
    assert live.metric("e2e_request_latency_seconds_count", family="random") == 2
    assert live.metric("time_to_first_preview_seconds_count", family="random") == 0
    live.post(stream=True, partial_images=1)
    assert live.metric("time_to_first_preview_seconds_count", family="random") == 1
    preview = live.metric("time_to_first_preview_seconds_sum", family="random")
    assert 0 < preview < live.metric("e2e_request_latency_seconds_sum", family="random")
    text = live.http.get("/metrics").text
    for line in ("ready 1.0", 'places{family="random"} 68.0', 'num_requests_running{family="random"} 0.0'):
        assert f"mulosd_{line}" in text
    assert "process_resident_memory_bytes" in text and "mulosd_build_info" in text


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("prompts", [False, True])
def test_one_line_a_request(start: Any, caplog: pytest.LogCaptureFixture, form: str, prompts: bool) -> None:
    live = start(log_format=form, log_prompts=prompts)
    logger = logging.getLogger("mulosd.serve")
    logger.setLevel(logging.INFO)
    logger.propagate = True
    with caplog.at_level(logging.INFO, "mulosd.serve"):
        live.post(prompt='red apple\nstatus=500 "', seed=3, n=2)
        live.http.get("/health")
        live.http.get("/metrics")
        live.http.get("/nope%0a")
        live.until(lambda: len(caplog.records) >= 2)
    first, second = [record.getMessage() for record in caplog.records if "POST" in record.msg or "GET" in record.msg]
    assert "\n" not in first + second
    if form == "json":
        values = json.loads(first)
        assert values["outcome"] == "finished" and values["seed"] == 3 and values["n"] == 2 and values["status"] == 200
        assert {"draft", "verify", "decode"} <= set(values["stages"]) and values["queue_seconds"] >= 0
        assert ("prompt" in values) == prompts
        assert json.loads(second)["path"] == "/nope\n"
    else:
        assert "outcome=finished" in first and "seed=3" in first and "stages=text:" in first
        assert ("red apple" in first) == prompts and first.count("status=") == 1 + prompts
