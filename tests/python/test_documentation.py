"""The Python of the README and of the docs runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import mulosd
from mulosd.engine.family import Family

ROOT = Path(__file__).parents[2]


def blocks(page: str) -> list[str]:
    """The Python of a page, one text a block."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/python-api.md"])
def test_the_examples_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stored: list[Any] = []
    # The one thing that an example must not do here: change the bundled family.
    monkeypatch.setattr("mulosd.engine.calibrate.Calibration.store", lambda *args: stored.append(args))
    names: dict[str, Any] = {"mulosd": mulosd, "prompts": "a cat on a blue background"}
    found = blocks(page)
    assert found
    for block in found:
        exec(compile(block.replace("held_out_prompts(engine, 32", "held_out_prompts(engine, 2"), page, "exec"), names)
    assert isinstance(names["engine"].family, Family)
    assert bool(stored) == ("store(" in "".join(found))
