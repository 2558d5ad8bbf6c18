"""A server under faults: no request is lost, and every image that is finished is the one made alone.

    python tools/chaos_serve.py faults --requests 10000
    python tools/chaos_serve.py same --requests 200
    python tools/chaos_serve.py left --requests 1000
    python tools/chaos_serve.py fuzz --cases 10000
    python tools/chaos_serve.py fuzz --cases 200 --family emoji

`faults` asks a server of tiny random models over HTTP, plain and streaming, while forwards and image decoders raise,
memory runs out, clients leave, requests are cancelled or never fit, and the engine's thread is killed, whereupon a
new server takes the place of the old one. `same` asks for one seed again and again among other requests, and compares
bytes. `left` fits a line through the memory blocks of Python, which no allocator's growth hides, over requests that
are finished, given up by their client, and refused. `fuzz` makes requests up from the schema (schemathesis), most of
them with prompts that can be drawn: any is by the stub, and with --family they are of its words. Each prints JSON, and
exits with 1 for any fault.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import gc
import http.client
import io
import json
import logging
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image

from mulosd.engine import scheduler
from mulosd.engine.engine import Engine, EngineLoad
from mulosd.engine.family_config import Calibration
from mulosd.engine.random_family import random_family
from mulosd.engine.scheduler import SchedulerConfig
from mulosd.measure.machine import device_name, versions
from mulosd.serve import Settings, create_app
from mulosd.serve.run import GracefulServer, listen

ROUTE = "/v1/images/generations"
DECODERS = ("serial", "mulo:scale=2", "mulo:scale=2:rows_per_cycle=2", "jacobi", "zipar", "draft-only:scale=2")
PROMPTS = ("red apple", "blue pear", "apple")
SEEDS = 4
# Blocks of memory a request may leave: caches that still fill leave some now and then, what is kept of each leaves one.
LEAK = 0.5
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,missing_required_header"
)


class Injected(RuntimeError):
    """A fault that was made on purpose."""


def small() -> Any:
    """A tiny random family that every decoder works with."""
    family = random_family((2, 4))
    found = Calibration(2, "latent", pool=3, radius=1, tau=0.05)
    family.config = replace(family.config, calibrations={found.key: found})
    return family


class Faulty(Engine):
    """An engine that fails as it is told.

    Args:
        family: its models.
        rate: share of forwards and of decoded images that fail; a quarter of them for want of memory.
        seed: of the faults.
    """

    def __init__(self, family: Any, rate: float = 0.0, seed: int = 0, **config: Any) -> None:
        super().__init__(family, config=SchedulerConfig(**config))
        self.rate, self.rng = rate, random.Random(seed)
        self.killed = False
        self.slow = 0.0
        self.injected: Counter[str] = Counter()

    def fail(self, what: str) -> None:
        if self.rng.random() < self.rate:
            memory = self.rng.random() < 0.25
            self.injected[f"{what}: {'out of memory' if memory else 'raised'}"] += 1
            raise torch.OutOfMemoryError(what) if memory else Injected(what)

    def add_request(self, *args: Any, **options: Any) -> int:
        if self.slow and self.rng.random() < 0.1:  # time for a client to leave while its request is added
            self.injected["add: slow"] += 1
            time.sleep(self.slow)
        return super().add_request(*args, **options)

    def step(self) -> Any:
        if self.killed and self.scheduler.busy:
            self.killed = False
            self.injected["thread: killed"] += 1
            raise SystemExit("the thread was killed")
        return super().step()

    def to_images(self, tokens: Any) -> Any:
        self.fail("decoding")
        return super().to_images(tokens)

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Let forwards of this engine fail."""
        run = scheduler.run

        def faulty(*given: Any) -> Any:
            self.fail("forward")
            return run(*given)

        with mock.patch.object(scheduler, "run", faulty):
            yield

    def left(self) -> list[str]:
        """What is left of requests, in words."""
        held = any(any(cache.used) for cache in self.caches.values())
        found = {"load": self.load() != EngineLoad(), "requests": self._requests, "updates": self._kept, "rows": held}
        return [name for name, there in found.items() if there]


class Running:
    """A server in a thread of this process."""

    def __init__(self, engine: Engine, **settings: Any) -> None:
        self.engine = engine
        told = Settings(**{"port": 0, "warmup": False, "decoder": "mulo:scale=2", **settings})
        self.app = create_app(told, [engine])
        self.state = self.app.state.server
        listener = listen(told)
        self.port = listener.getsockname()[1]
        self.server = GracefulServer(self.app)
        self.thread = threading.Thread(target=self.server.run, args=([listener],), daemon=True)
        self.thread.start()
        wait(lambda: self.state.warm and self.server.started)

    def outcomes(self) -> Counter[str]:
        """Requests by what became of them, as the server counts them."""
        sample = self.state.metrics.registry.get_sample_value
        names = ("finished", "aborted", "failed", "refused")
        return Counter({n: int(sample("mulosd_requests_total", {"status": n}) or 0) for n in names})

    def end(self) -> list[str]:
        """Wait until nothing is under way, end it, and say what is left."""
        with contextlib.suppress(TimeoutError):
            wait(lambda: not self.state.under_way and not self.state._jobs and not self.engine.left())  # type: ignore[attr-defined]
        found = [f"{self.state.under_way} places are taken"] if self.state.under_way else []
        found += [f"{len(self.state._jobs)} jobs are listed"] if self.state._jobs else []
        for served in self.state.families.values():
            found += ["the engine counts requests"] if served.engine._count or served.engine._queues else []
        found += [f"the engine still holds {name}" for name in self.engine.left()]  # type: ignore[attr-defined]
        self.server.should_exit = True
        self.thread.join(60)
        return found + (["the server does not end"] if self.thread.is_alive() else [])


def wait(true: Callable[[], Any], seconds: float = 60) -> None:
    """Wait for something that must become true; TimeoutError when it does not."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError("it did not become so in time")
        time.sleep(0.005)


def pixels(data: str) -> bytes:
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return image.tobytes()


class Storm:
    """Clients of a server whose engine fails.

    Args:
        seed: of what happens.
        rate: of faults, see `Faulty`.
        lives: requests behind which the engine's thread is killed.
    """

    def __init__(self, seed: int = 0, rate: float = 0.02, lives: int = 1000) -> None:
        self.rng, self.rate, self.lives, self.seed = random.Random(seed), rate, lives, seed
        self.family = small()
        self.alone = Engine(self.family)
        self.wanted: dict[tuple[str, str, int], bytes] = {}
        self.sent = 0
        self.seen: Counter[str] = Counter()
        self.counted: Counter[str] = Counter()
        self.injected: Counter[str] = Counter()
        self.faults: list[str] = []
        self.lock = threading.Lock()

    def reference(self, prompt: str, decoder: str, seed: int) -> bytes:
        """The pixels of an image made alone."""
        key = (prompt, decoder, seed)
        with self.lock:
            if key not in self.wanted:
                made = self.alone.generate(prompt, decoder=decoder, seed=seed)
                self.wanted[key] = made.images[0].tobytes()
            return self.wanted[key]

    def fault(self, text: str) -> None:
        with self.lock:
            self.faults.append(text)

    def note(self, what: str) -> None:
        with self.lock:
            self.seen[what] += 1

    def ask(self, running: Running, number: int) -> None:
        """One request, of a kind that its number decides."""
        rng = random.Random(self.seed * 10**9 + number)
        prompt, decoder, seed = rng.choice(PROMPTS), rng.choice(DECODERS), rng.randrange(SEEDS)
        body: dict[str, Any] = {"prompt": prompt, "seed": seed, "n": rng.choice((1, 1, 1, 1, 3))}
        body |= {"stream": rng.random() < 0.5, "mulosd": {"decoder": decoder}}
        if body["stream"]:
            body["partial_images"] = rng.randrange(4)
        kind = rng.random()
        if kind < 0.05:
            body["size"] = "7x7"
        headers = {"content-type": "application/json", "x-request-id": f"chaos-{number:08}"}
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=120)
        try:
            connection.request("POST", ROUTE, json.dumps(body), headers)
            if 0.05 <= kind < 0.2:
                time.sleep(rng.random() * 0.05)
                self.note("left")
                return
            if 0.2 <= kind < 0.25:
                time.sleep(rng.random() * 0.03)
                other = http.client.HTTPConnection("127.0.0.1", running.port, timeout=120)
                other.request("POST", f"/v1/requests/{headers['x-request-id']}/cancel", b"")
                other.getresponse().read()
                other.close()
            answer = connection.getresponse()
            self.judge(answer.status, answer.headers.get_content_type(), answer.read(), body)
        except (OSError, http.client.HTTPException) as error:
            self.fault(f"request {number} got no answer: {error!r}")
        finally:
            connection.close()

    def judge(self, status: int, kind: str, data: bytes, body: dict[str, Any]) -> None:
        """Note what an answer says, and compare its images."""
        if kind == "text/event-stream":
            events = [json.loads(line[6:]) for line in data.decode().splitlines() if line.startswith("data: ")]
            images = {e["image_index"]: e["b64_json"] for e in events if str(e.get("type", "")).endswith("completed")}
            error = events[-1].get("error") if events else {"code": "nothing"}
        else:
            values = json.loads(data)
            images = {i: image["b64_json"] for i, image in enumerate(values.get("data", []))}
            error = values.get("error")
        for index, image in images.items():
            if pixels(image) != self.reference(body["prompt"], body["mulosd"]["decoder"], body["seed"] + index):
                self.fault(f"{body}: image {index} is not the one made alone")
        if error is None and len(images) != body["n"]:
            self.fault(f"{body}: {len(images)} images came")
        if status >= 500 and error is None:
            self.fault(f"{body}: {status} without an error")
        if error is not None and error["code"] == "invalid_value" and "size" not in body:
            self.fault(f"{body}: {error['message']}")
        self.note("answered" if error is None else str(error["code"]))

    def life(self, numbers: range, clients: int) -> None:
        """One server from its beginning to its end."""
        engine = Faulty(self.family, self.rate, self.seed + numbers.start, max_running=4)
        engine.slow = 0.03
        running = Running(engine, max_waiting=20, max_n=4, request_timeout=60)
        last = numbers.stop - 2 * clients  # what comes behind it meets a dead engine
        with engine.failing(), ThreadPoolExecutor(clients) as threads:
            for number in numbers:
                if number == last:
                    threads.submit(setattr, engine, "killed", True)
                threads.submit(self.ask, running, number)
        left = running.end()
        self.sent += len(numbers)
        counted = running.outcomes()
        self.counted += counted
        self.injected += engine.injected
        self.faults += left
        if sum(counted.values()) != len(numbers):
            self.faults.append(f"{len(numbers)} were sent, {dict(counted)} counted")

    def run(self, requests: int, clients: int = 16, told: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
        """Send requests; what became of them."""
        begun = time.perf_counter()
        for start in range(0, requests, self.lives):
            self.life(range(start, min(requests, start + self.lives)), clients)
            told(f"{self.sent} requests, {len(self.faults)} faults, {time.perf_counter() - begun:.0f} s")
        counted = dict(self.counted)
        return {
            "sent": self.sent,
            **counted,
            "lost": self.sent - sum(counted.values()),
            "servers": -(-requests // self.lives),
            "injected": dict(self.injected),
            "answers": dict(self.seen),
            "faults": self.faults[:20],
            "seconds": round(time.perf_counter() - begun, 1),
        }


def same(requests: int, clients: int = 16) -> dict[str, Any]:
    """One seed among other requests: how many different answers there are."""
    storm = Storm()
    running = Running(Faulty(storm.family, max_running=4), max_waiting=64, max_n=4)
    images: Counter[str] = Counter()

    def one(number: int) -> None:
        body = {"prompt": PROMPTS[0], "seed": 7, "mulosd": {"decoder": DECODERS[2]}}
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=120)
        connection.request("POST", ROUTE, json.dumps(body), {"content-type": "application/json"})
        images[json.loads(connection.getresponse().read())["data"][0]["b64_json"]] += 1
        connection.close()

    with ThreadPoolExecutor(clients) as threads:
        asked = [threads.submit(f, *a) for n in range(requests) for f, a in ((one, (n,)), (storm.ask, (running, n)))]
        for call in asked:
            call.result()
    faults = storm.faults + running.end()
    if len(images) != 1 or sum(images.values()) != requests:
        faults.append(f"{sum(images.values())} answers, {len(images)} different ones")
    return {"requests": requests, "among": requests, "different": len(images), "faults": faults[:20]}


def left(requests: int, clients: int = 4, told: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Blocks of memory that a request of each kind leaves, behind a warm-up of half as many."""
    begun = time.perf_counter()
    running = Running(Faulty(small(), max_running=4), max_waiting=500)
    found: dict[str, Any] = {}
    faults: list[str] = []

    def ask(body: dict[str, Any], leave: bool) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=120)
        connection.request(
            "POST", ROUTE, json.dumps({"prompt": PROMPTS[0], **body}), {"content-type": "application/json"}
        )
        if leave:
            time.sleep(0.01)
        else:
            connection.getresponse().read()
        connection.close()

    kinds: dict[str, tuple[dict[str, Any], bool]] = {
        "finished": ({"stream": True, "partial_images": 1}, False),
        "aborted": ({"n": 3, "mulosd": {"decoder": "serial"}}, True),
        "refused": ({"n": 0}, False),
    }
    part = max(1, requests // 20)
    gc.collect()
    gc.freeze()  # a collection then looks at what came since, not at all of torch
    with ThreadPoolExecutor(clients) as threads:
        for kind, (body, leave) in kinds.items():
            points = []
            for first in range(-(requests // 2), requests + 1, part):
                wait(lambda: not running.state.under_way and not running.state._jobs)
                gc.collect()
                if first >= 0:
                    points.append((first, sys.getallocatedblocks()))
                calls = [threads.submit(ask, {**body, "seed": n + requests}, leave) for n in range(first, first + part)]
                for call in calls:
                    call.result()
                del calls
                told(f"{kind}: {max(0, first + part)} of {requests}, {time.perf_counter() - begun:.0f} s")
            slope, _ = statistics.linear_regression(*zip(*points, strict=True))
            found[kind] = {"blocks a request": round(slope, 3), "readings": points}
            if slope > LEAK:
                faults.append(f"{slope:.2f} blocks are left by each request that is {kind}, {LEAK} at most are allowed")
    faults += running.end()
    outcomes = dict(running.outcomes())
    return {
        "requests": requests,
        **found,
        "outcomes": outcomes,
        "faults": faults,
        "seconds": round(time.perf_counter() - begun, 1),
    }


def fuzz(cases: int, family: str | None, seed: int = 0) -> dict[str, Any]:
    """Requests out of the schema: what schemathesis finds, and the answers by status."""
    if family is None:
        engine: Engine = Faulty(small(), max_running=4)
        # Any prompt draws: one of a few words would hardly ever be hit upon.
        draw = engine.add_request
        engine.check_prompts = lambda prompts: []  # type: ignore[method-assign]
        engine.add_request = lambda prompt, **options: draw(PROMPTS[0], **options)  # type: ignore[method-assign]
        running = Running(engine, decoder="draft-only", qualities={})
    else:
        engine = Engine.from_pretrained(family, config=SchedulerConfig(max_running=4))
        running = Running(engine, decoder="mulo")
    program = (sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()")
    url = f"http://127.0.0.1:{running.port}/openapi.json"
    options = ["--phases", "examples,coverage,fuzzing", "--checks", CHECKS, "--seed", str(seed), "--no-color"]
    options += ["--continue-on-failure", "--request-timeout", "120"]
    made, faults = 0, []
    statuses: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ)
        if family is not None:
            [served] = running.state.families.values()
            facts = Path(folder, "model.json")
            facts.write_text(served.model().model_dump_json())
            environment |= {"MULOSD_MODEL": str(facts), "SCHEMATHESIS_HOOKS": "drawable"}
            environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        # Cases are counted by operation; further rounds have seeds of their own.
        rounds = 0
        while made < cases:
            each = min(3300, max(1, (cases - made) // 3))
            words = [*program, "run", url, *options, "--max-examples", str(each), "--seed", str(seed + rounds)]
            done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
            found = re.search(r"(\d[\d,]*) generated", done.stdout)
            if done.returncode or found is None:
                faults.append(done.stdout[-3000:] + done.stderr[-1000:])
                break
            made, rounds = made + int(found[1].replace(",", "")), rounds + 1
    images: Counter[str] = Counter()
    for metric in running.state.metrics.responses.collect():
        for sample in metric.samples:
            if sample.name.endswith("_total"):
                statuses[sample.labels["code"]] += int(sample.value)
                if sample.labels["route"] == ROUTE:
                    images[sample.labels["code"]] += int(sample.value)
    outcomes = dict(running.outcomes())
    running.server.should_exit = True
    running.thread.join(60)
    errors = {code: n for code, n in statuses.items() if code.startswith("5")}
    if errors:
        faults.append(f"answers of 5xx: {errors}")
    return {
        "family": family or "stub",
        "cases": made,
        "rounds": rounds,
        "statuses": dict(sorted(statuses.items())),
        "statuses of requests for images": dict(sorted(images.items())),
        "outcomes": outcomes,
        "faults": faults,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    storm = what.add_parser("faults")
    storm.add_argument("--requests", type=int, default=10000)
    storm.add_argument("--seed", type=int, default=0)
    storm.add_argument("--rate", type=float, default=0.02, help="share of forwards and decoded images that fail")
    one = what.add_parser("same")
    one.add_argument("--requests", type=int, default=200)
    held = what.add_parser("left")
    held.add_argument("--requests", type=int, default=1000, help="of each kind, behind half as many that warm up")
    made = what.add_parser("fuzz")
    made.add_argument("--cases", type=int, default=10000)
    made.add_argument("--family", help="a bundled family or a folder, in place of a stub")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("mulosd.serve").setLevel(logging.CRITICAL)

    def told(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    if given.what == "faults":
        report = Storm(given.seed, given.rate).run(given.requests, told=told)
    elif given.what == "same":
        report = same(given.requests)
    elif given.what == "left":
        report = left(given.requests, told=told)
    else:
        report = fuzz(given.cases, given.family)
    command = " ".join(["tools/chaos_serve.py", *sys.argv[1:]])
    report = {
        "command": command,
        "device": device_name(torch.device("cpu")),
        "versions": versions(),
        **report,
    }
    print(json.dumps(report, indent=1))
    return 1 if report["faults"] or report.get("lost") else 0


if __name__ == "__main__":
    sys.exit(main())
