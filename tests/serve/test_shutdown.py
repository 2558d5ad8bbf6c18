"""The process: signals, exit codes, and what those get who are under way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.slow
# Token by token; of the slow family some seconds of work even on a fast machine.
LONG = {"prompt": "apple", "n": 10, "mulosd": {"decoder": "serial"}}


class Process:
    """`mulosd serve` over a tiny family of random weights."""

    def __init__(self, folder: Path, *options: str) -> None:
        command = [sys.executable, "-m", "mulosd", "serve", "--family", str(folder), "--port", "0", *options]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.url = ""
        self.wait(lambda: any(line.startswith("ready") for line in self.lines))
        self.url = re.findall(r"listening on (\S+)", "\n".join(self.lines))[0]

    def _read(self) -> None:
        for line in self.process.stderr or ():
            self.lines.append(line)

    def wait(self, true: Callable[[], bool], seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end and self.process.poll() is None, "".join(self.lines)
            time.sleep(0.02)

    def begin(self, **body: Any) -> tuple[threading.Thread, list[httpx.Response | Exception]]:
        """A request in a thread of its own, once it is under way."""
        answers: list[httpx.Response | Exception] = []

        def ask() -> None:
            try:
                answers.append(httpx.post(f"{self.url}/v1/images/generations", json={**LONG, **body}, timeout=120))
            except httpx.HTTPError as error:
                answers.append(error)

        before = self.running()
        thread = threading.Thread(target=ask)
        thread.start()
        self.wait(lambda: self.running() > before or not thread.is_alive())
        return thread, answers

    def running(self) -> float:
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        return float(re.findall(r'^mulosd_places_taken\{family="random"\} (\S+)', text, re.M)[0])

    def end(self) -> int:
        code = self.process.wait(60)
        self.reader.join(10)
        return code


@pytest.fixture
def process(folder: Path, slow_folder: Path) -> Iterator[Callable[..., Process]]:
    made: list[Process] = []

    def begin(*options: str, slow: bool = False) -> Process:
        made.append(Process(slow_folder if slow else folder, *options))
        return made[-1]

    yield begin
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_end_and_takes_no_more(process: Callable[..., Process], number: signal.Signals) -> None:
    server = process("--drain-delay", "0.5")
    plain, stream = server.begin(), server.begin(stream=True)
    server.process.send_signal(number)
    server.wait(lambda: httpx.get(f"{server.url}/health/ready").status_code == 503)
    assert httpx.get(f"{server.url}/health").status_code == 200, "it still listens, and is alive"
    refused = httpx.post(f"{server.url}/v1/images/generations", json={"prompt": "apple"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert int(refused.headers["retry-after"]) > 0
    for thread, answers in (plain, stream):
        thread.join(90)
        assert isinstance(answers[0], httpx.Response) and answers[0].status_code == 200, answers
    assert len(plain[1][0].json()["data"]) == 10  # type: ignore[union-attr]
    assert stream[1][0].text.count("event: image_generation.completed") == 10  # type: ignore[union-attr]
    assert server.end() == 0, "".join(server.lines)
    assert not [line for line in server.lines if "Traceback" in line]


def test_what_does_not_end_in_time_is_told_so(process: Callable[..., Process]) -> None:
    server = process("--drain-timeout", "0.1", slow=True)
    plain, stream = server.begin(), server.begin(stream=True)
    server.process.send_signal(signal.SIGTERM)
    for thread, _ in (plain, stream):
        thread.join(60)
    answer, events = plain[1][0], stream[1][0]
    assert isinstance(answer, httpx.Response) and isinstance(events, httpx.Response)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutdown")
    assert json.loads(events.text.strip().splitlines()[-1].removeprefix("data: "))["error"]["code"] == "shutdown"
    assert server.end() == 1


def test_a_second_signal_ends_at_once(process: Callable[..., Process]) -> None:
    server = process(slow=True)
    thread, answers = server.begin()
    server.process.send_signal(signal.SIGTERM)
    server.wait(lambda: any("shutting down" in line for line in server.lines))
    server.process.send_signal(signal.SIGTERM)
    assert server.end() == 128 + signal.SIGTERM
    thread.join(30)
    assert isinstance(answers[0], httpx.HTTPError), "it was cut off, well before its end"


def test_an_idle_server_ends_with_0_and_a_socket_is_removed(process: Callable[..., Process], tmp_path: Path) -> None:
    path = tmp_path / "mulosd.sock"
    server = process("--uds", str(path))
    assert server.url == f"unix:{path}"
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://mulosd") as client:
        assert client.post("/v1/images/generations", json={"prompt": "apple"}, timeout=60).status_code == 200
    server.process.send_signal(signal.SIGTERM)
    assert server.end() == 0 and not path.exists()
