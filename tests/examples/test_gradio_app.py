"""examples/gradio_app.py, started and asked by gradio_client; skipped where gradio is not installed."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mulosd
from mulosd.engine.random_family import random_family

for needed in ("gradio", "gradio_client"):
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"the Gradio example is not tested: {needed} is not installed", allow_module_level=True)

SCRIPT = Path(__file__).parents[2] / "examples" / "gradio_app.py"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def app() -> Iterator[ModuleType]:
    before = os.environ.get("GRADIO_ANALYTICS_ENABLED")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported: tests ask no other machine
    spec = importlib.util.spec_from_file_location("gradio_app", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    if before is None:
        del os.environ["GRADIO_ANALYTICS_ENABLED"]


@pytest.fixture
def client(app: ModuleType, family: Path) -> Iterator[Callable[..., Any]]:
    """`client(engines, family)` starts the page and gives a client of it."""
    from gradio_client import Client

    torch.set_num_threads(1)
    started: list[Any] = []

    def start(engines: Any, name: str) -> Any:
        page = app.page(engines, name)
        _, url, _ = page.queue().launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
        started.append(page)
        return Client(url, verbose=False)

    yield start
    for page in started:
        page.close()


def test_an_image_sharpens_and_is_that_of_the_engine(app: ModuleType, client: Any, family: Path) -> None:
    asked = client(app.Engines(), str(family))
    decoder = "mulo:scale=2:rows_per_cycle=2"
    job = asked.submit("red apple", str(family), decoder, 7, "largest", api_name="/draw")
    path, line = job.result(timeout=120)
    told = mulosd.Engine.from_pretrained(family).generate("red apple", seed=7, decoder=decoder)
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(told.images[0]))
    assert line.startswith("seed 7 · ") and "verify" in line
    # What a client that lags behind gets is fewer; what the page is given is told by the function itself.
    engine = mulosd.Engine.from_pretrained(family)
    shown = [(image, line) for image, line in app.draw(engine, "red apple", decoder, 7, None) if image is not None]
    assert len(shown) >= 4 and "draft" in shown[0][1] and all(image.size == (16, 16) for image, _ in shown)
    assert shown[-1][0].tobytes() == told.images[0].tobytes() != shown[0][0].tobytes()

    small, line = asked.predict("red apple", str(family), "serial", -1, "8", api_name="/draw")
    with Image.open(small) as image:
        assert image.size == (8, 8)
    assert line.split()[1] != "-1"
    for prompt, wanted, told_why in (
        ("zzz", "mulo", "no word that this family knows"),
        ("red apple", "nonsense", "decoders must be chosen from"),
    ):
        with pytest.raises(Exception, match=told_why):
            asked.predict(prompt, str(family), wanted, 7, "largest", api_name="/draw")


def test_who_stops_ends_the_work(app: ModuleType, client: Any) -> None:
    class Slow(mulosd.Engine):
        forwards = 0

        def _run(self) -> None:
            time.sleep(0.02)
            self.forwards += 1
            super()._run()

    engine = Slow(random_family((8, 32)))  # 1,024 tokens: 20 s at least
    asked = client({"random": engine}, "random")
    job = asked.submit("red apple", "random", "serial", 7, "largest", api_name="/draw")
    end = time.monotonic() + 60
    while not job.outputs() and time.monotonic() < end:
        time.sleep(0.05)
    assert engine.load().running == 1
    job.cancel()
    while engine.load().running and time.monotonic() < end:
        time.sleep(0.05)
    assert engine.load() == mulosd.EngineLoad() and engine.forwards < 1024
