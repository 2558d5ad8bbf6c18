"""The decoder that docs/extending.md adds is one file and one line, and does what the page says."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mulosd.engine.decoding import DECODERS, parse, spell
from mulosd.engine.engine import Engine

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture
def echo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The decoder of the page, written to a package and registered as the page says."""
    section = PAGE.read_text(encoding="utf-8").split("## Adding a decoder")[1].split("\n## ")[0]
    whole, line, register = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert whole.startswith("# engine/decoding/echo.py") and line == '"echo": ".echo:Echo",\n'
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "echo.py").write_text(whole)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(DECODERS, "lines", dict(DECODERS.lines))
    exec(register, {})
    yield
    for name in ("my_package", "my_package.echo"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("echo")
def test_the_decoder_of_the_page_decodes(engine: Engine) -> None:
    prompts = ["apple", "red pear"]
    serial = engine.generate(prompts, decoder="serial", seed=2)
    assert torch.equal(engine.generate(prompts, decoder="echo:exact=8", seed=2).tokens, serial.tokens)
    made = engine.generate(prompts, decoder="echo", seed=2, batch_size=2)
    assert not torch.equal(made.tokens, serial.tokens)
    assert torch.equal(made.tokens[:, :2], serial.tokens[:, :2])
    assert [s.forwards["echo"] for s in made.stats] == [15 + 6] * 2
    assert made.stats[0].spelling == "echo:grid=8"
    alone = engine.generate(prompts[1], decoder={"name": "echo", "exact": 2}, seed=2)
    assert torch.equal(alone.tokens[0], made.tokens[1])
    assert spell(parse("echo:exact=3")) == "echo:exact=3"
    for text, message in (("echo:exact=0", "exact must be"), ("echo:grid=5", r"no 5x5 grid; it has \[2, 4, 8\]")):
        with pytest.raises(ValueError, match=message):
            engine.generate("apple", decoder=text)


def test_an_unknown_name_stays_unknown() -> None:
    with pytest.raises(ValueError, match="chosen from serial"):
        parse("echo")
