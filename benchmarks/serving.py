"""What `mulosd serve` costs beside the engine, and whether it leaks.

    python benchmarks/serving.py overhead --family emoji --pairs 30
    python benchmarks/serving.py soak --requests 1000

`overhead` alternates `Engine.generate` in this process with the same prompt and seed over HTTP, one at a time, and
compares pair by pair: what else the machine does meets both. `soak` sends requests that are finished, given up by their
client, and refused to a server of a tiny random family, and fits a line through the server's RssAnon + VmSwap behind a
warm-up.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np

from mulosd.measure.speed.serving import Client, prompts_of


@contextmanager
def server(*options: str) -> Iterator[tuple[str, int]]:
    """Address and process id of a server of these options, once it is ready."""
    command = [sys.executable, "-m", "mulosd", "serve", "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    lines: list[str] = []
    ready = threading.Event()

    def read() -> None:
        for line in process.stderr or ():
            if len(lines) < 50:
                lines.append(line)
            if line.startswith("ready"):
                ready.set()

    threading.Thread(target=read, daemon=True).start()
    try:
        if not ready.wait(600):
            raise RuntimeError("".join(lines))
        yield re.findall(r"listening on (\S+)", "".join(lines))[0], process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def overhead(family: str, pairs: int) -> dict[str, Any]:
    """Seconds of the same images from the engine, over HTTP, and over HTTP with one preview."""
    from mulosd import Engine

    engine = Engine.from_pretrained(family)
    engine.warmup()
    found: dict[str, list[float]] = {"engine": [], "json": [], "stream": [], "preview": []}
    with server("--family", family) as (url, _):
        facts = Client(url).get("/v1/models")["data"][0]["mulosd"]
        plain = Client(url)
        stream = Client(url, body={"stream": True, "partial_images": 1})
        for client in (plain, stream):
            client.draw(facts["example"], 0)
        for seed, prompt in enumerate(prompts_of(facts, pairs)):
            begun = time.monotonic()
            engine.generate(prompt, seed=seed)
            found["engine"].append(time.monotonic() - begun)
            found["json"].append(plain.draw(prompt, seed).seconds)
            answer = stream.draw(prompt, seed)
            found["stream"].append(answer.seconds)
            found["preview"].append(answer.preview or float("nan"))
    ratios = {
        "json / engine": [b / a for a, b in zip(found["engine"], found["json"], strict=True)],
        "first preview / whole": [a / b for a, b in zip(found["preview"], found["stream"], strict=True)],
    }
    middle = {name: statistics.median(values) for name, values in found.items()}
    return {"pairs": pairs, "median seconds": middle} | {
        name: dict(zip(("p20", "p50", "p80"), np.percentile(values, (20, 50, 80)).tolist(), strict=True))
        for name, values in ratios.items()
    }


def memory(process: int) -> int:
    """Bytes that are the process's own, in memory or swapped out."""
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * sum(int(n) for n in re.findall(r"^(?:RssAnon|VmSwap):\s+(\d+) kB", status, re.M))


def leave(url: str, body: dict[str, Any]) -> None:
    """Ask for an image and close the connection while it is drawn."""
    address = urlsplit(url)
    content = json.dumps(body).encode()
    head = f"POST /v1/images/generations HTTP/1.1\r\nhost: {address.netloc}\r\ncontent-type: application/json\r\n"
    with socket.create_connection((address.hostname or "", address.port or 0)) as connection:
        connection.sendall(head.encode() + f"content-length: {len(content)}\r\n\r\n".encode() + content)
        time.sleep(0.01)


def soak(requests: int, only: str | None = None) -> dict[str, Any]:
    """Bytes that a request of each kind leaves behind."""
    from dataclasses import replace

    from mulosd.engine.family_config import Calibration
    from mulosd.engine.random_family import random_family

    family = random_family()
    family.config = replace(
        family.config, calibrations={c.key: c for c in [Calibration(4, "latent", pool=3, radius=1, tau=0.05)]}
    )
    report: dict[str, Any] = {"requests": requests}
    with tempfile.TemporaryDirectory() as folder:
        family.save(Path(folder) / "random")
        with server("--family", f"{folder}/random", "--decoder", "mulo:scale=4", "--max-waiting", "500") as (
            url,
            process,
        ):
            stream = Client(url, body={"stream": True, "partial_images": 1})
            refused = Client(url, body={"n": 0})
            slow = {"prompt": "apple", "mulosd": {"decoder": "serial"}}
            kinds: dict[str, Callable[[int], object]] = {
                "finished": lambda i: stream.draw("apple", i),
                "aborted": lambda i: leave(url, {**slow, "seed": i, "stream": bool(i % 2)}),
                "refused": lambda i: refused.draw("apple", i),
            }
            for name in kinds if only is None else [only]:
                points = readings(kinds[name], requests, url, process)
                x, y = np.array(points, dtype=float).T
                half = len(points) // 2
                report[name] = {
                    "bytes a request": float(np.polyfit(x, y, 1)[0]),
                    "in its second half": float(np.polyfit(x[half:], y[half:], 1)[0]),
                    "readings": points,
                }
            report["counted"] = counts(url)
    return report


def readings(ask: Callable[[int], object], requests: int, url: str, process: int) -> list[tuple[int, int]]:
    """Requests and bytes of memory, four at a time, behind a warm-up of a half as many; read while nothing is under
    way."""
    points: list[tuple[int, int]] = []
    part = max(1, requests // 20)
    with ThreadPoolExecutor(4) as threads:
        for begun in range(-(requests // 2), requests, part):
            rest(url)
            if begun >= 0:
                points.append((begun, memory(process)))
            list(threads.map(ask, range(begun + requests, min(requests, begun + part) + requests)))
        rest(url)
        points.append((requests, memory(process)))
    return points


def rest(url: str) -> None:
    """Wait until nothing is under way."""
    while not re.search(r"^mulosd_places_taken\{.*\} 0\.0$", scrape(url), re.M):
        time.sleep(0.05)


def counts(url: str) -> dict[str, float]:
    """What the server counted."""
    found = re.findall(r'^mulosd_requests_total\{status="(\w+)"\} (\S+)', scrape(url), re.M)
    return {name: float(n) for name, n in found}


def scrape(url: str) -> str:
    """The metrics of a server."""
    with urlopen(f"{url}/metrics") as answer:
        return str(answer.read().decode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    first = what.add_parser("overhead")
    first.add_argument("--family", default="emoji")
    first.add_argument("--pairs", type=int, default=30)
    second = what.add_parser("soak")
    second.add_argument("--requests", type=int, default=1000)
    second.add_argument("--only", choices=("finished", "aborted", "refused"))
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    report = overhead(asked.family, asked.pairs) if asked.what == "overhead" else soak(asked.requests, asked.only)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
