"""The page for people: its files, and what a person does on it in Chromium."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

FOLDER = files("mulosd.serve.page")
NAMES = ("index.html", "page.css", "page.js")
HERE = Path(__file__).parent


def test_the_page_is_small_and_asks_nobody_else(server: Any) -> None:
    texts = [(FOLDER / name).read_text() for name in NAMES]
    assert sum(map(len, texts)) < 40_000
    for text in texts:
        assert not re.search(r"(?:https?:)?//[a-z]", text.replace("// ", "")), "no address of another server"
        assert "innerHTML" not in text and "eval(" not in text and " style=" not in text and "onclick" not in text
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        answer = server.http.get(path)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)
        policy = answer.headers["content-security-policy"]
        assert "script-src 'self'" in policy and "unsafe" not in policy and "connect-src 'self'" in policy


def test_it_can_be_left_out(start: Any) -> None:
    live = start(page=False)
    assert [live.http.get(path).status_code for path in ("/", "/page.js")] == [404, 404]
    assert live.http.get("/v1/models").status_code == 200


def browser(*packages: str) -> str:
    """Chromium; skips, saying what is missing, where it or a package of node is not there."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    missing = [name for name, there in (("node", shutil.which("node")), ("Chromium", found)) if not there]
    if not missing:
        for package in ("playwright-core", *packages):
            asked = ["node", "--input-type=module", "-e", f"await import('{package}')"]
            if subprocess.run(asked, cwd=node_folder(), capture_output=True).returncode:
                missing.append(f"{package} (npm i {package} in the folder of MULOSD_NODE_MODULES, or here)")
    if missing:
        pytest.skip(f"the page is not tested in a browser: {', '.join(missing)} not found")
    return str(found)


def node_folder() -> Path:
    """The folder whose node_modules hold playwright-core."""
    return Path(os.environ.get("MULOSD_NODE_MODULES", Path(__file__).parents[2]))


@pytest.fixture
def in_browser(start: Any, told: Any, tmp_path: Path) -> Callable[..., str]:
    """`in_browser(script, *packages)` runs a script of this folder on the page of a server that it can slow and fill;
    what it printed."""

    def run(script: str, *packages: str) -> str:
        executable = browser(*packages)
        engine = told()
        live = start(engine, max_waiting=0)
        held = ExitStack()

        def control(what: str) -> None:
            admission = live.state.find(None).admission
            if what == "full":
                held.enter_context(admission.places_for(admission.places))
            elif what == "free":
                held.close()
            else:
                engine.pause = 0.2 if what == "slow" else 0.0

        @live.app.post("/test/{what}")
        async def changed(what: str) -> dict[str, str]:
            control(what)
            return {}

        shutil.copy(HERE / script, tmp_path)
        (tmp_path / "node_modules").symlink_to(node_folder() / "node_modules")
        words = ["node", tmp_path / script, live.url, executable, tmp_path]
        done = subprocess.run(words, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        live.at_rest()
        return done.stdout

    return run


@pytest.mark.slow
def test_what_a_person_does(in_browser: Callable[..., str], tmp_path: Path) -> None:
    assert "the page works" in in_browser("page.mjs")
    assert (tmp_path / "page.png").stat().st_size > 10_000


@pytest.mark.slow
def test_axe_finds_nothing_serious(in_browser: Callable[..., str]) -> None:
    """No violation of impact serious or critical, in any state of the page."""
    assert "axe-core looked at 10 states" in in_browser("accessibility.mjs", "axe-core")
