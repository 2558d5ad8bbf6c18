"""The model of docs/extending.md, registered as the page says, is one that every part of the engine runs."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mulosd.engine.batch import Feed
from mulosd.engine.cache import KVCache, Lane
from mulosd.engine.decoding import Serial, ZipAR
from mulosd.engine.engine import Engine
from mulosd.engine.family import Family
from mulosd.engine.family_config import FamilyConfig
from mulosd.engine.models import kinds
from mulosd.engine.random_family import random_family
from mulosd.engine.runner import run
from mulosd.engine.sampling import SamplingParams

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
NAME = "mulosd.engine.models.llama"
GRID = 4


def block(first_line: str) -> str:
    """The Python of the page that begins with a comment."""
    found = re.findall(rf"^```python\n# {re.escape(first_line)}\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert len(found) == 1, first_line
    return str(found[0])


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    """A family of random weights around the model of the page, saved and loaded by the name that the page gives it."""
    folder = tmp_path_factory.mktemp("extending")
    (folder / "llama.py").write_text(block("engine/models/llama.py"))
    line = ast.literal_eval("{" + block("engine/models/kinds.py, in AR_MODELS") + "}")
    spec = importlib.util.spec_from_file_location(NAME, folder / "llama.py")
    assert spec is not None and spec.loader is not None
    with pytest.MonkeyPatch.context() as patch:
        module: Any = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, NAME, module)
        spec.loader.exec_module(module)
        for name, place in line.items():
            patch.setitem(kinds.AR_MODELS.lines, name, place)
        base = random_family()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            cond_len, cond_dim = base.null_features(1).shape[1:]
            config = module.LlamaConfig(24, 32, 2, 4, 2, 8, 48, cond_len, cond_dim, (GRID,))
            model = kinds.build(kinds.AR_MODELS, "llama", config.to_dict())
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.data.normal_(std=0.3)
        made = Family(FamilyConfig("extended"), base.tokenizer, base.conditioner, [model], {})  # type: ignore[arg-type]
        yield Family.load(made.save(folder / "family"))


def test_the_kind_is_kept_and_its_cache_holds_the_key_heads(family: Family) -> None:
    assert kinds.kind_of(family.ar, kinds.AR_MODELS) == "llama"
    cache = KVCache(family.ar, GRID)
    assert cache.k[0].shape[2] == 2
    both = sum(t.numel() * t.element_size() for t in (*cache.k, *cache.v))
    assert both == KVCache.bytes_per_row(family.ar, GRID) * len(cache.used)


@torch.inference_mode()
@pytest.mark.parametrize("static", [False, True])
def test_cached_logits_are_the_teacher_forced_ones(family: Family, static: bool) -> None:
    cond = torch.cat([family.features(["a red apple"]), family.null_features(1)])
    tokens = torch.arange(GRID * GRID) * 7 % 24
    expected = family.ar(cond, tokens.expand(2, -1), GRID)
    lane = Lane(KVCache(family.ar, GRID), cond)
    feeds: list[Feed] = [Feed(lane, None)]
    feeds += [Feed(lane, tokens[i : i + 1], range(i, i + 1)) for i in range(5)]
    feeds.append(Feed(lane, tokens[5:-1], range(5, GRID * GRID - 1)))
    logits = [run([feed], static=static)[0].logits for feed in feeds]
    for branch, want in zip(("cond", "uncond"), expected, strict=True):
        got = torch.cat([getattr(part, branch) for part in logits])
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1  # not all alike


def test_serial_and_zipar_decode_it(family: Family) -> None:
    """A window as wide as the grid is raster order: the tokens of Serial."""
    engine, sampling = Engine(family), SamplingParams(cfg_scale=2.0)
    prompts = ["a red apple", "a blue pear"]
    serial = engine.generate(prompts, decoder=Serial(), sampling=sampling, seed=[1, 2])
    wide = engine.generate(prompts, decoder=ZipAR(window=GRID), sampling=sampling, seed=[1, 2])
    narrow = engine.generate(prompts, decoder=ZipAR(window=1), sampling=sampling, seed=[1, 2])
    assert torch.equal(serial.tokens, wide.tokens)
    assert narrow.tokens.shape == serial.tokens.shape and len(serial.tokens.unique()) > 4


def test_a_class_without_a_line_is_named() -> None:
    with pytest.raises(ValueError, match=r"torch.nn.*Linear is no registered kind.*llamagen"):
        kinds.kind_of(torch.nn.Linear(1, 1), kinds.AR_MODELS)
