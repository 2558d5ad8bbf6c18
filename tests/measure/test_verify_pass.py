"""The meter of the verify pass: what it counts, and that its parts make up the whole."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mulosd.engine import runner
from mulosd.engine.engine import Engine
from mulosd.engine.linear_choice import layers_of
from mulosd.engine.random_family import random_family

FILE = Path(__file__).parents[2] / "benchmarks" / "verify_pass.py"


@pytest.fixture(scope="module")
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify_pass", FILE)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules["verify_pass"] = found
    spec.loader.exec_module(found)
    return found


def test_a_verify_pass_is_counted_and_the_steps_beside_it_are_not(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEAST_TOKENS", 32)
    engine, before = Engine(random_family((4, 8))), runner.forward
    with module.metered() as meter:
        engine.generate("red apple", decoder="mulo:scale=2:tau=0.0:radius=0:pool=1", sampling="cfg_scale=2", seed=3)
    assert runner.forward is before
    model = engine.family.ar
    [rows] = meter.rows
    fed = rows // 2
    assert rows == 2 * fed and fed in (63, 64)
    weights = sum(layer.weight.numel() for block in model.blocks for layer in layers_of(block))
    assert meter.flops["projections"] == 2 * rows * weights
    c, first = model.config, model.config.cond_len
    seen = sum(first + i + 1 for i in range(fed))
    assert meter.flops["attention"] == 4 * 2 * c.n_layers * c.n_heads * c.head_dim * seen
    assert all(meter.seconds[part] > 0 for part in module.PARTS)
    found = module.row("float32", meter, {"projections": 1.0}, "projections")
    assert found["share_of_plain"] == 1.0 / meter.seconds["projections"]
    whole = module.row("float32", meter, {}, "all")
    assert whole["seconds"] == sum(meter.seconds.values()) and whole["plain_seconds"] is None
