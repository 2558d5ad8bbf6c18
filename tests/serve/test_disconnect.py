"""Whoever leaves, wherever: the engine is empty soon after, and the next image is right."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import pytest


def leaving(live: Any, **body: Any) -> socket.socket:
    """A connection that has sent a request; closing it is leaving."""
    address = urlsplit(live.url)
    content = json.dumps({"prompt": "apple", "mulosd": {"decoder": "serial"}, **body}).encode()
    connection = socket.create_connection((address.hostname, address.port))
    head = f"POST /v1/images/generations HTTP/1.1\r\nhost: {address.netloc}\r\ncontent-type: application/json\r\n"
    connection.sendall(head.encode() + f"content-length: {len(content)}\r\n\r\n".encode() + content)
    return connection


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("when", ["adding", "waiting", "running", "between previews"])
def test_a_client_that_leaves(start: Any, told: Any, when: str, stream: bool, n: int) -> None:
    engine = told(max_running=1)
    live = start(engine, max_running=1, drain_timeout=1)
    wanted = live.post(seed=9).json()["data"][0]["b64_json"]
    company: list[Any] = []
    neighbour = threading.Thread(target=lambda: company.append(live.post(seed=9, mulosd={"decoder": "serial"})))
    body: dict[str, Any] = {"stream": stream, "n": n}
    if when == "adding":
        engine.adding.clear()
        connection = leaving(live, **body)
        live.until(lambda: live.state.under_way == n)
    elif when == "waiting":
        engine.gate.clear()
        neighbour.start()
        live.until(lambda: live.state.under_way == 1)
        connection = leaving(live, **body)
        live.until(lambda: live.state.under_way == 1 + n)
    else:
        engine.pause = 0.02
        if when == "between previews":
            body["mulosd"] = {"decoder": "mulo:scale=2:tau=2:rows_per_cycle=2", "partials": "all"}
        connection = leaving(live, **body)
        before = engine.steps
        live.until(lambda: engine.steps > before + 6)
        if when == "between previews" and stream:
            assert b"partial_image" in connection.recv(1 << 16)
    connection.close()
    time.sleep(0.05)
    engine.gate.set()
    engine.adding.set()
    if neighbour.ident is not None:
        neighbour.join(60)
        assert company[0].status_code == 200, "a neighbour is not harmed"
    else:
        # Well before it would have been done: 64 steps an image, one at a time.
        live.until(lambda: not live.state.under_way, 1.2)
    live.at_rest()
    engine.pause = 0
    assert live.post(seed=9).json()["data"][0]["b64_json"] == wanted
    outcomes = live.outcomes()
    assert (outcomes["aborted"], outcomes["failed"]) == (1, 0), outcomes


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_a_request_that_is_cancelled_by_its_number(start: Any, told: Any, stream: bool) -> None:
    engine = told()
    live = start(engine)
    engine.pause = 0.02
    answers: list[Any] = []

    def ask() -> None:
        body = {"prompt": "apple", "stream": stream, "n": 2, "mulosd": {"decoder": "serial"}}
        headers = {"x-request-id": "my-request-1"}
        answers.append(live.http.post("/v1/images/generations", json=body, headers=headers))

    thread = threading.Thread(target=ask)
    thread.start()
    live.until(lambda: engine.load().running == 2)
    assert live.http.post("/v1/requests/other-request/cancel").status_code == 404
    answer = live.http.post("/v1/requests/my-request-1/cancel")
    assert answer.json() == {"id": "my-request-1", "cancelled": True}
    thread.join(30)
    live.at_rest()
    assert answers[0].headers["x-request-id"] == "my-request-1"
    if stream:
        *_, event, data, _, _ = answers[0].text.split("\n")
        assert event == "event: error" and json.loads(data.removeprefix("data: "))["error"]["code"] == "cancelled"
    else:
        assert answers[0].status_code == 409 and answers[0].headers["x-should-retry"] == "false"
    assert live.outcomes()["aborted"] == 1
    assert live.http.post("/v1/requests/my-request-1/cancel").status_code == 404


def test_a_name_that_is_taken_or_unsafe_is_not_given_twice(start: Any, told: Any) -> None:
    engine = told()
    live = start(engine)
    engine.gate.clear()
    name = {"x-request-id": "my-request-1"}
    body = {"prompt": "apple"}
    first = threading.Thread(target=lambda: live.http.post("/v1/images/generations", json=body, headers=name))
    first.start()
    live.until(lambda: "my-request-1" in live.state._jobs)
    assert live.http.get("/version", headers=name).headers["x-request-id"].startswith("req_")
    engine.gate.set()
    first.join(30)
    assert live.http.get("/version", headers=name).headers["x-request-id"] == "my-request-1"
    for bad in ("short", "a" * 65, "with space here", "evil\tname-here", "../../etc/passwd"):
        assert live.http.get("/version", headers={"x-request-id": bad}).headers["x-request-id"].startswith("req_")
