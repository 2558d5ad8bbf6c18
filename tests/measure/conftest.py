"""A small world of scenes with hand-made sprites: seconds to train on, and nothing to download."""

from __future__ import annotations

import numpy as np
import pytest

from mulosd.data.scenes import Renderer, SceneConfig
from mulosd.data.sprites import Sprites
from mulosd.engine.models.text import Vocabulary


@pytest.fixture(scope="session")
def sprites() -> Sprites:
    """Four shapes of 96 px with transparent margins."""
    y, x = np.mgrid[0:96, 0:96] - 47.5
    shapes = {
        "ball": x**2 + y**2 < 38**2,
        "box": (abs(x) < 34) & (abs(y) < 34),
        "cross": (abs(x) < 12) & (abs(y) < 40) | (abs(y) < 12) & (abs(x) < 40),
        "ring": (x**2 + y**2 < 40**2) & (x**2 + y**2 > 22**2),
    }
    colours = [(210, 40, 40), (30, 60, 200), (20, 140, 40), (240, 240, 20)]
    rgba = np.zeros((4, 96, 96, 4), np.uint8)
    for i, (mask, colour) in enumerate(zip(shapes.values(), colours, strict=True)):
        rgba[i][mask] = (*colour, 255)
    return Sprites(tuple(shapes), rgba)


@pytest.fixture(scope="session")
def scene_config() -> SceneConfig:
    return SceneConfig(
        {"ball": "balls", "box": "boxes", "cross": "crosses", "ring": "rings"},
        {"blue": (122, 170, 222), "white": (250, 250, 250), "gray": (150, 156, 166)},
    )


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    phrases = {
        "ball": 3, "balls": 3, "sphere": 3, "box": 4, "boxes": 4, "cross": 5, "crosses": 5, "ring": 6, "rings": 6,
        "blue": 7, "white": 8, "gray": 9,
        "left": 10, "right": 11, "above": 12, "over": 12, "below": 13,
        "two": 14, "three": 15,
    }  # fmt: skip
    return Vocabulary(phrases, frozenset({"a", "an", "the", "and", "on", "of", "background"}))


@pytest.fixture(scope="session")
def renderer(scene_config: SceneConfig, sprites: Sprites) -> Renderer:
    return Renderer(scene_config, sprites)
