"""Who may ask: keys on every route, hosts and origins on this machine, and the settings that decide it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import openai
import pytest

from mulosd.cli import app as commands
from mulosd.serve import Settings

KEYS = ("first-key", "second-key")
OPEN = {"/health", "/health/ready"}


def routes(live: Any) -> list[tuple[str, str]]:
    """Method and path of everything that the application answers."""
    found = []
    for route in live.app.routes:
        for method in route.methods or ():
            found.append((method, route.path.replace("{request_id}", "r").replace("{model}", "random")))
    assert len(found) > 10
    return [(method, path.replace("{image_id}", "i")) for method, path in found]


def test_every_route_but_health_asks_for_a_key(start: Any, tmp_path: Path) -> None:
    live = start(api_keys=KEYS, image_store=tmp_path)
    steps = live.engine.steps
    for method, path in [*routes(live), ("GET", "/nope"), ("POST", "/v1/nope"), ("GET", "/health/")]:
        for header in (None, "Bearer wrong", "Bearer", "Bearer first-ke", "Basic eDp3cm9uZw==", "Basic !", "first-key"):
            answer = live.http.request(method, path, headers={} if header is None else {"authorization": header})
            if path in OPEN:
                assert answer.status_code == 200
            else:
                assert answer.status_code == 401, (method, path, header)
                if method != "HEAD":
                    assert answer.json()["error"]["code"] == "invalid_api_key"
                assert answer.headers["www-authenticate"] == (
                    "Bearer" if path.startswith("/v1/") else 'Basic realm="mulosd"'
                )
    assert live.engine.steps == steps
    for key in KEYS:
        bearer = {"authorization": f"Bearer {key}"}
        basic = {"authorization": "Basic " + base64.b64encode(f"anybody:{key}".encode()).decode()}
        for header in (bearer, basic):
            assert live.http.get("/v1/models", headers=header).status_code == 200
            assert live.http.get("/", headers=header).status_code == 200
        assert live.http.post("/v1/images/generations", json={"prompt": "apple"}, headers=bearer).status_code == 200


def test_metrics_may_be_opened(start: Any) -> None:
    live = start(api_keys=KEYS, metrics_open=True)
    assert live.http.get("/metrics").status_code == 200
    assert live.http.get("/version").status_code == 401


def test_the_official_client_raises_for_a_wrong_key(start: Any) -> None:
    live = start(api_keys=KEYS)
    with pytest.raises(openai.AuthenticationError) as caught:
        openai.OpenAI(base_url=f"{live.url}/v1", api_key="wrong").images.generate(prompt="apple")
    assert caught.value.code == "invalid_api_key"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:1", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("evil.example", 403),
        ("", 403),
        ("localhost.evil", 403),
    ],
)
def test_a_foreign_name_of_this_machine_is_refused(server: Any, host: str, status: int) -> None:
    answer = server.http.get("/v1/models", headers={"host": host})
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["error"] == {
            "message": "this server answers to localhost alone",
            "type": "permission_error",
            "param": None,
            "code": "host_not_allowed",
        }


def test_a_foreign_web_page_may_not_draw(start: Any) -> None:
    live = start(cors_origins=("https://friend.example",))
    body = {"prompt": "apple"}
    for origin, status in (
        ("https://evil.example", 403), ("null", 403), (live.url, 200), ("https://friend.example", 200),
    ):  # fmt: skip
        answer = live.http.post("/v1/images/generations", json=body, headers={"origin": origin})
        assert answer.status_code == status, origin
        allowed = "https://friend.example" if origin == "https://friend.example" else None
        assert answer.headers.get("access-control-allow-origin") == allowed
    asking = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    for origin, status in (("https://friend.example", 200), ("https://evil.example", 400)):
        answer = live.http.options("/v1/images/generations", headers={"origin": origin, **asking})
        assert answer.status_code == status


def test_no_page_of_another_site_is_allowed_by_default(server: Any) -> None:
    asking = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    answer = server.http.options("/v1/images/generations", headers=asking)
    assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers


def test_headers_of_every_answer(server: Any) -> None:
    for path in ("/health", "/nope", "/v1/models", "/", "/page.js"):
        headers = server.http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in headers["content-security-policy"] and "server" not in headers


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_beyond_this_machine_a_key_is_needed(host: str) -> None:
    with pytest.raises(ValueError, match="--api-key"):
        Settings(host=host)
    assert not Settings(host=host, api_keys=("k",)).loopback
    assert not Settings(host=host, insecure=True).loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_on_this_machine_none_is(host: str) -> None:
    assert Settings(host=host).loopback


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"families": ()}, "at least one family"),
        ({"max_running": 0}, "max_running must be at least 1"),
        ({"max_waiting": -1}, "max_waiting must be at least 0"),
        ({"max_body": 10}, "max_body"),
        ({"request_timeout": 0}, "request_timeout"),
        ({"drain_timeout": float("nan")}, "drain_timeout"),
        ({"log_format": "xml"}, "text or json"),
        ({"api_keys": ("",)}, "not empty"),
        ({"qualities": {"best": "serial"}}, "no quality 'best'"),
        ({"image_store": Path("/nowhere/at/all")}, "create it first"),
    ],
)
def test_settings_check_themselves(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Settings(**changed)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "--api-key"),
        (["--family", "nope"], "bundled families are"),
        (["--decoder", "nope"], "decoders must be chosen from"),
        (["--quality", "high"], "QUALITY=DECODER"),
        (["--max-body", "much"], "--max-body much"),
        (["--family", "emoji", "--family", "emoji"], "two families are called 'emoji'"),
        (["--log-format", "xml"], "text or json"),
    ],
)
def test_the_command_tells_mistakes_in_one_line(options: list[str], words: str) -> None:
    from typer.testing import CliRunner

    result = CliRunner().invoke(commands, ["serve", "--port", "0", *options])
    assert result.exit_code == 2 and result.stderr.startswith("error: ") and words in " ".join(result.stderr.split())


def test_without_the_extra_the_command_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import util

    from typer.testing import CliRunner

    found = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *a: None if name == "sse_starlette" else found(name, *a))
    result = CliRunner().invoke(commands, ["serve"])
    assert result.exit_code == 2 and "pip install 'mulosd[serve]'" in result.stderr and "sse_starlette" in result.stderr
    help_text = CliRunner().invoke(commands, ["serve", "--help"])
    assert help_text.exit_code == 0 and "mulosd serve --family emoji" in help_text.output


def test_an_address_that_is_taken_is_told(server: Any, folder: Path) -> None:
    from typer.testing import CliRunner

    port = server.url.rsplit(":", 1)[1]
    result = CliRunner().invoke(commands, ["serve", "--port", port, "--family", str(folder)])
    assert result.exit_code == 2 and f"cannot listen on 127.0.0.1:{port}" in result.stderr
