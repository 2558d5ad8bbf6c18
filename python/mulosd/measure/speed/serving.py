"""Latency and goodput of a running server: requests over HTTP, in a closed loop or as they come (Poisson).

A closed loop waits for its answers, so it never asks more than the server can do. An open loop asks at its own rate,
and counts from the moment at which a request was due: what a queue costs is seen in it alone.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import torch

from ..machine import commit, device_name, now, versions
from ..rows import rows_of
from ..table import figure, named, table

if TYPE_CHECKING:
    from rich.table import Table

PERCENTILES = (50, 90, 99)
OUTCOMES = ("finished", "refused", "failed")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Answer:
    """What became of one request.

    Attributes:
        outcome: "finished", "refused" (429, or 503 before any work) or "failed".
        begun, ended: seconds by the monotonic clock; `begun` is when it was due.
        preview: seconds to the first preview; None where none came.
        queue: seconds that it waited in the engine, as the server says.
        error: what the server said, or the network.
    """

    outcome: str
    begun: float
    ended: float
    preview: float | None = None
    queue: float = 0.0
    error: str = ""

    @property
    def seconds(self) -> float:
        return self.ended - self.begun


@dataclass(frozen=True)
class Load:
    """How a server is asked: so many at a time, or so many a second; exactly one of them."""

    concurrency: int | None = None
    rate: float | None = None

    @property
    def name(self) -> str:
        return f"{self.concurrency} at a time" if self.rate is None else f"{self.rate:g} a second"


@dataclass
class Client:
    """Asks one server.

    Args:
        url: such as http://127.0.0.1:8000.
        key: of the server, or None.
        body: of every request, beside prompt and seed.
        timeout: seconds for an answer.
    """

    url: str
    key: str | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 600.0

    def get(self, path: str) -> Any:
        """JSON of a route; ValueError when there is none."""
        try:
            connection = self._connection()
            connection.request("GET", path, headers=self._headers())
            answer = connection.getresponse()
            found = json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ValueError(f"{self.url}{path} does not answer as `mulosd serve` does: {error}") from error
        if answer.status != 200:
            raise ValueError(f"{self.url}{path} answers {answer.status}: {found.get('error', found)}")
        return found

    def draw(self, prompt: str, seed: int, due: float | None = None) -> Answer:
        """Ask for one image, and read all of the answer."""
        begun = time.monotonic() if due is None else due
        body = json.dumps({"prompt": prompt, "seed": seed, **self.body})
        try:
            connection = self._connection()
            connection.request("POST", "/v1/images/generations", body, self._headers())
            answer = connection.getresponse()
            if answer.status != 200:
                said = answer.read().decode(errors="replace")
                refused = answer.status == 429 or "draining" in said or "not_ready" in said
                return Answer("refused" if refused else "failed", begun, time.monotonic(), error=said[:500])
            return self._streamed(answer, begun) if self.body.get("stream") else self._whole(answer, begun)
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            return Answer("failed", begun, time.monotonic(), error=f"{type(error).__name__}: {error}")

    def _whole(self, answer: http.client.HTTPResponse, begun: float) -> Answer:
        image = json.loads(answer.read())["data"][0]["mulosd"]
        return Answer("finished", begun, time.monotonic(), queue=image["queue_seconds"])

    def _streamed(self, answer: http.client.HTTPResponse, begun: float) -> Answer:
        preview = None
        for line in answer:
            if not line.startswith(b"data: "):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                return Answer("failed", begun, time.monotonic(), preview, error=str(event["error"]))
            if event["type"].endswith("completed"):
                answer.read()
                return Answer("finished", begun, time.monotonic(), preview, event["mulosd"]["queue_seconds"])
            preview = time.monotonic() - begun if preview is None else preview
        return Answer("failed", begun, time.monotonic(), preview, error="the stream ended before the image was there")

    def _connection(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"the address of a server is such as http://127.0.0.1:8000, got {self.url!r}")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(parts.hostname, parts.port, timeout=self.timeout)

    def _headers(self) -> dict[str, str]:
        key = {} if self.key is None else {"authorization": f"Bearer {self.key}"}
        return {"content-type": "application/json", **key}


def bench_serving(
    client: Client,
    loads: Sequence[Load],
    prompts: Sequence[str],
    *,
    requests: int = 32,
    deadline: float = 2.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a server under each load, one after the other; one request before them is not counted.

    Args:
        client: asks it.
        loads: how.
        prompts: taken in turn, each request with another seed.
        requests: sent under each load.
        deadline: seconds within which an image counts for goodput.
        seed: of the first request, and of the times at which an open loop asks.
        progress: called with (what, done, total).

    Returns:
        A report of plain values, ready for JSON.

    Raises:
        ValueError: a number that cannot be, or the server refuses the first request.
    """
    if requests < 1 or not prompts or not loads or not deadline > 0:
        raise ValueError("requests, prompts and loads must be at least 1, and the deadline above 0 seconds")
    for load in loads:
        if (load.concurrency is None) == (load.rate is None) or (load.concurrency or 1) < 1 or not (load.rate or 1) > 0:
            raise ValueError(f"a load is a concurrency of at least 1 or a rate above 0, got {load}")
    first = client.draw(prompts[0], seed)
    if first.outcome != "finished":
        raise ValueError(f"{client.url} did not draw the first image: {first.error}")
    rows = []
    for number, load in enumerate(loads):
        jobs = [(prompts[i % len(prompts)], seed + 1 + i) for i in range(requests)]

        def told(done: int, before: int = number * requests) -> None:
            if progress is not None:
                progress("requests", before + done, len(loads) * requests)

        begun = time.monotonic()
        if load.concurrency is not None:
            answers = closed(client, jobs, load.concurrency, told)
        else:
            answers = opened(client, jobs, load.rate or 1.0, seed, told)
        rows.append(describe(load, answers, time.monotonic() - begun, deadline))
    return {
        "device": device_name(torch.device("cpu")),
        "versions": versions(),
        "commit": commit(),
        "date": now(),
        "family": str(client.body.get("model", "")),
        "seed": seed,
        "deadline": deadline,
        "body": dict(client.body),
        "notes": [],
        "rows": rows,
    }


def closed(
    client: Client, jobs: Sequence[tuple[str, int]], concurrency: int, told: Callable[[int], None] | None = None
) -> list[Answer]:
    """So many clients, each of which asks again when it has its answer."""
    answers: list[Answer] = []
    lock, todo = threading.Lock(), iter(jobs)

    def work() -> None:
        while True:
            with lock:
                job = next(todo, None)
            if job is None:
                return
            answer = client.draw(*job)
            with lock:
                answers.append(answer)
                if told is not None:
                    told(len(answers))

    run([threading.Thread(target=work) for _ in range(concurrency)])
    return answers


def opened(
    client: Client,
    jobs: Sequence[tuple[str, int]],
    rate: float,
    seed: int = 0,
    told: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Requests at the times of a Poisson process of this rate a second, answered or not."""
    answers: list[Answer] = []
    lock, threads = threading.Lock(), []
    due = time.monotonic()
    for (prompt, number), gap in zip(jobs, gaps(rate, seed), strict=False):
        due += gap
        time.sleep(max(0.0, due - time.monotonic()))

        def work(prompt: str = prompt, number: int = number, due: float = due) -> None:
            answer = client.draw(prompt, number, due)
            with lock:
                answers.append(answer)
                if told is not None:
                    told(len(answers))

        threads.append(threading.Thread(target=work))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return answers


def gaps(rate: float, seed: int) -> Iterator[float]:
    """Seconds between the requests of a Poisson process."""
    source = random.Random(seed)
    return (source.expovariate(rate) for _ in itertools.count())


def run(threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def describe(load: Load, answers: Sequence[Answer], seconds: float, deadline: float) -> dict[str, Any]:
    """The row of a load.

    Args:
        load: how it was asked.
        answers: one a request.
        seconds: from the first request to the last answer.
        deadline: for goodput.
    """
    done = [answer for answer in answers if answer.outcome == "finished"]
    previews = [answer.preview for answer in done if answer.preview is not None]
    in_time = sum(answer.seconds <= deadline for answer in done)
    errors = sorted({answer.error for answer in answers if answer.error})
    row: dict[str, Any] = {
        "load": load.name,
        "sent": len(answers),
        **{outcome: sum(answer.outcome == outcome for answer in answers) for outcome in OUTCOMES},
        "seconds": seconds,
        "images_per_second": len(done) / seconds,
        "goodput": in_time / seconds,
        "in_time": in_time / len(answers),
    }
    figures = {"latency": [a.seconds for a in done], "first_preview": previews, "queue": [a.queue for a in done]}
    for name, values in figures.items():
        if values:
            row[name] = {f"p{p}": float(np.percentile(values, p)) for p in PERCENTILES}
    return {**row, "errors": errors[:3]}


def serving_table(report: dict[str, Any]) -> Table:
    """The rows as a table."""
    rows = rows_of(report)
    columns = [
        named([row.what["load"] for row in rows], rows, "load"),
        *(figure(name, name, "{value:.0f}") for name in ("sent", *OUTCOMES)),
        figure("images/s", "images_per_second"),
        *(figure(f"p{p}", f"latency.p{p}") for p in PERCENTILES),
        figure("preview p50", "first_preview.p50"),
        figure("queue p50", "queue.p50"),
        figure("in time", "in_time", "{value:.0f} %", 100),
        figure("goodput", "goodput"),
    ]
    caption = f"{report['device']}. Seconds; in time: within {report['deadline']:g} s; goodput: such images a second"
    return table(rows, columns, f"{report['family'] or 'the server'}: requests over HTTP", caption, gap=1)


def prompts_of(facts: Mapping[str, Any], count: int, seed: int = 0) -> list[str]:
    """Prompts that a family draws, from what /v1/models says of it.

    Args:
        facts: the `mulosd` of a model.
        count: how many.
        seed: of the choice.
    """
    source = random.Random(seed)
    objects, backgrounds = facts["objects"], facts["backgrounds"]
    if len(objects) > 1 and backgrounds:
        pairs = [source.sample(objects, 2) for _ in range(count)]
        return [f"a {a} and a {b} on a {source.choice(backgrounds)} background" for a, b in pairs]
    words = [name.split(",")[0] for name in facts["classes"]] or objects or facts["words"] or [facts["example"]]
    return [source.choice(words) for _ in range(count)]
