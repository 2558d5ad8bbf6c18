"""Where a server is found, and what it makes of sizes: prefixes of proxies, a port for metrics, `--size-policy`."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from mulosd.serve import Settings, create_app
from mulosd.serve.run import GracefulServer, both, listen

LEAST = {"port": 0, "warmup": False}


NEAREST = {"16x16": 16, "1024x1024": 16, "1x1": 4, "9x9": 8, "6x5": 4, "6x6": 8, "16x4": 8, "auto": 16}


def test_the_nearest_size_is_drawn_and_told(start: Any) -> None:
    live = start(size_policy="nearest")
    for asked, drawn in NEAREST.items():
        body = live.post(size=asked).json()
        assert body["size"] == f"{drawn}x{drawn}"
        warnings = body["data"][0]["mulosd"]["warnings"]
        told = [f"size {asked}: family 'random' draws 4x4, 8x8, 16x16; this is {drawn}x{drawn}"]
        assert warnings == ([] if asked in ("auto", "16x16") else told)


def test_a_size_that_is_none_is_refused_all_the_same(start: Any) -> None:
    live = start(size_policy="nearest")
    for size in ("large", "0x0", "16", "16x"):
        error = live.post(size=size).json()["error"]
        assert (error["param"], error["code"]) == ("size", "invalid_value")
    strict = start()
    assert strict.post(size="9x9").status_code == strict.post(size="16x8").status_code == 400


def test_a_prefix_that_a_proxy_cuts_off_or_not(start: Any, tmp_path: Path) -> None:
    live = start(root_path="/draw/here", api_keys=("key",), image_store=tmp_path)
    key = {"authorization": "Bearer key"}
    for prefix in ("", "/draw/here"):
        assert live.http.get(f"{prefix}/health").status_code == 200, "it asks for no key"
        assert live.http.get(f"{prefix}/v1/models").status_code == 401
        assert live.http.get(f"{prefix}/v1/models", headers=key).status_code == 200
        page = live.http.get(f"{prefix}/", headers=key)
        assert page.status_code == 200 and "page.js" in page.text
        body = {"prompt": "apple", "response_format": "url"}
        answer = live.http.post(f"{prefix}/v1/images/generations", json=body, headers=key)
        url = answer.json()["data"][0]["url"]
        assert url.startswith(f"{live.url}/draw/here/v1/images/img_")
        assert live.http.get(url, headers=key).headers["content-type"] == "image/png"
    assert live.outcomes()["finished"] == 2, "they are counted as what they are"
    assert live.metric("http_responses_total", route="/v1/images/generations", code="200") == 2
    assert live.http.get("/draw/nowhere", headers=key).status_code == 404


def test_the_page_asks_below_its_own_address() -> None:
    text = (Path(__file__).parents[2] / "python/mulosd/serve/page/page.js").read_text()
    assert 'fetch("v1/models")' in text and 'fetch("/' not in text and "fetch(`/" not in text


def test_metrics_on_a_port_of_their_own(told: Any) -> None:
    settings = Settings(**LEAST, api_keys=("key",), metrics_port=0, max_running=4)  # type: ignore[arg-type]
    engine = told()
    server = GracefulServer(create_app(settings, [engine]))
    listeners = [listen(settings), listen(settings)]
    url, beside = (f"http://127.0.0.1:{one.getsockname()[1]}" for one in listeners)
    thread = threading.Thread(target=lambda: asyncio.run(both(server, *listeners)), daemon=True)
    thread.start()
    while not server.started or httpx.get(f"{beside}/health/ready").status_code != 200:
        assert thread.is_alive()
    key = {"authorization": "Bearer key"}
    assert httpx.get(f"{url}/metrics").status_code == 401
    drawn = httpx.post(f"{url}/v1/images/generations", json={"prompt": "apple"}, headers=key, timeout=60)
    assert drawn.status_code == 200
    text = httpx.get(f"{beside}/metrics").text
    assert 'mulosd_requests_total{status="finished"} 1.0' in text and "mulosd_ready 1.0" in text
    assert httpx.get(f"{beside}/v1/models").status_code == 404
    assert httpx.get(f"{beside}/metrics", headers={"host": "elsewhere.org"}).status_code == 403
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{beside}/health")


@pytest.mark.parametrize(
    "wrong", [{"size_policy": "any"}, {"root_path": "draw"}, {"root_path": "/draw/"}, {"metrics_port": 70000}]
)
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(**wrong)
