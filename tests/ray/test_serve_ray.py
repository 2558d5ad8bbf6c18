"""The server as an application of Ray Serve: the official client, streams, refusals, who leaves, and dead engines."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from live import calibrated
from PIL import Image
from ray.exceptions import TaskCancelledError

from mulosd.engine.engine import Engine
from mulosd.ray.replica import Departures, Replica
from mulosd.ray.serve import build, read

DECODER = "mulo:scale=2:rows_per_cycle=2"
HTTP = httpx.Client(timeout=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated((8, 16, 32)).save(tmp_path_factory.mktemp("families") / "random")


@pytest.fixture(scope="module")
def url(cluster: None, folder: Path) -> Iterator[str]:
    """Address of one replica that runs two images at a time and lets two more wait."""
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for _ in range(5):
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            break
        except TimeoutError:  # Ray gives its proxy a minute, a busy machine may need more
            continue
    # All values are texts, as of a command line.
    args = {"family": str(folder), "decoder": DECODER, "max_running": "2", "max_waiting": "2", "num_cpus": "0.5"}
    serve.run(build(args), name="mulosd", route_prefix="/images")
    yield f"http://127.0.0.1:{port}/images"
    serve.shutdown()


def outcomes(url: str) -> dict[str, float]:
    lines = HTTP.get(f"{url}/metrics").text.splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if line.startswith("mulosd_requests_total{")]
    return {name.split('"')[1]: float(value) for name, value in pairs}


def taken(url: str) -> float:
    text = HTTP.get(f"{url}/metrics").text
    return float(re.findall(r'^mulosd_places_taken\{family="random"\} (\S+)', text, re.M)[0])


def until(true: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not become so in time"
        time.sleep(0.05)


@pytest.mark.slow
def test_the_official_client_works_unchanged(url: str, folder: Path) -> None:
    api = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
    assert [model.id for model in api.models.list()] == ["random"]
    answer = api.images.generate(prompt="red apple", extra_body={"seed": 3})
    found = Image.open(BytesIO(base64.b64decode(answer.data[0].b64_json or "")))
    wanted = Engine.from_pretrained(folder).generate("red apple", decoder=DECODER, seed=3).images[0]
    assert found.tobytes() == wanted.tobytes()
    times, kinds = [], []
    for event in api.images.generate(prompt="apple", stream=True, partial_images=3, extra_body={"seed": 3}):
        times.append(time.monotonic())
        kinds.append(event.type.rpartition(".")[2])
    assert kinds == ["partial_image"] * 3 + ["completed"]
    assert times[-1] - times[0] > 0.02, "events are not held back until the end"
    assert httpx.get(f"{url}/health/ready").json() == {"status": "ready"}
    page = httpx.get(f"{url}/")
    assert page.status_code == 200 and "content-security-policy" in page.headers


@pytest.mark.slow
def test_what_is_too_much_is_refused_in_the_words_of_the_api(url: str) -> None:
    body = {"prompt": "apple", "n": 2, "mulosd": {"decoder": "serial"}}

    def ask(_: int) -> httpx.Response:
        return httpx.post(f"{url}/v1/images/generations", json=body, timeout=120)

    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(ask, range(6)))
    codes = [answer.status_code for answer in answers]
    assert set(codes) == {200, 429} and codes.count(200) >= 2
    [error, *_] = [answer for answer in answers if answer.status_code == 429]
    assert error.json()["error"]["code"] == "queue_full" and int(error.headers["retry-after"]) >= 1
    wrong = httpx.post(f"{url}/v1/images/generations", json={"prompt": "apple", "size": "5x5"}, timeout=60)
    assert wrong.status_code == 400 and "image" not in wrong.json()["error"]["code"]


def leave(url: str, body: dict[str, Any], seen: bytes) -> str:
    """Ask, close the connection once the answer holds some bytes (none: once it is under way); what became of it."""
    before = outcomes(url)
    content = json.dumps({"prompt": "apple", "n": 2, **body}).encode()
    address = urlsplit(url)
    head = f"POST {address.path}/v1/images/generations HTTP/1.1\r\nhost: {address.netloc}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    with socket.create_connection((str(address.hostname), address.port or 0), timeout=120) as client:
        client.sendall(head.encode() + content)
        came = b""
        while seen and seen not in came:
            news = client.recv(1 << 16)
            assert news, came[-300:]
            came += news
        if not seen:
            until(lambda: taken(url) > 0 or outcomes(url) != before)
    until(lambda: taken(url) == 0 and outcomes(url) != before)
    found = outcomes(url)
    [outcome] = [name for name, number in found.items() if number != before[name]]
    return outcome


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "seen"),
    [
        ({}, b""),
        ({"stream": True}, b""),
        ({"stream": True}, b"200 OK"),
        ({"stream": True, "mulosd": {"decoder": "serial", "partials": "all"}}, b"image_generation.partial_image"),
    ],
    ids=["json", "stream", "stream, begun", "stream, between previews"],
)
def test_a_client_that_leaves_ends_its_work(url: str, body: dict[str, Any], seen: bytes) -> None:
    body = {"mulosd": {"decoder": "serial"}, **body}
    # The order in which a replica hears of it changes; an image may be done before it does.
    found = [leave(url, body, seen) for _ in range(6)]
    assert set(found) <= {"aborted", "finished"} and "aborted" in found, found
    answer = HTTP.post(f"{url}/v1/images/generations", json={"prompt": "apple"}, timeout=120)
    assert answer.status_code == 200


def test_an_end_of_what_a_client_sends_is_its_departure() -> None:
    async def check() -> None:
        said: list[Any] = []
        given = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Any:
            if given:
                return given.pop()
            raise TaskCancelledError

        async def app(scope: Any, receive: Any, send: Any) -> None:
            said.extend([await receive(), await receive()])
            raise KeyError("a fault of the application stays one")

        with pytest.raises(KeyError):
            await Departures(app)({"type": "http"}, receive, receive)
        assert [message["type"] for message in said] == ["http.request", "http.disconnect"]

    asyncio.run(check())


def test_a_replica_whose_engine_is_dead_is_not_well(monkeypatch: pytest.MonkeyPatch) -> None:
    Replica().check_health()
    monkeypatch.setattr(Replica, "server", SimpleNamespace(dead=[]))
    Replica().check_health()
    monkeypatch.setattr(Replica, "server", SimpleNamespace(dead=["emoji"]))
    with pytest.raises(RuntimeError, match="dead: emoji"):
        Replica().check_health()


def test_texts_become_settings() -> None:
    settings, replicas = read(
        {
            "family": "a,b",
            "max_running": "3",
            "page": "false",
            "kv_budget": "1000",
            "max_replicas": "4",
            "num_gpus": "0.5",
        }
    )
    assert (settings.families, settings.max_running, settings.page, settings.kv_budget) == (("a", "b"), 3, False, 1000)
    assert (replicas.max_replicas, replicas.num_gpus, replicas.min_replicas) == (4, 0.5, 1)


def test_a_key_of_the_environment_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULOSD_API_KEY", "one two")
    assert read({"host": "0.0.0.0"})[0].api_keys == ("one", "two")
    assert read({"api_key": "three"})[0].api_keys == ("three",)


@pytest.mark.parametrize(
    ("args", "part"),
    [
        ({"familly": "emoji"}, "there is no setting 'familly'"),
        ({"port": "80"}, "there is no setting 'port'"),
        ({"max_running": "many"}, "max_running"),
        ({"host": "0.0.0.0"}, "no key is asked for"),
        ({"min_replicas": "3", "max_replicas": "2"}, "above max_replicas"),
    ],
)
def test_settings_that_cannot_be(args: dict[str, Any], part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MULOSD_API_KEY", raising=False)
    with pytest.raises(ValueError, match=part):
        build(args)
