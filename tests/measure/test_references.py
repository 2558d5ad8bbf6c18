"""Real pictures from a folder: the middle square, resized; and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mulosd.engine.random_family import random_family
from mulosd.measure.references import builtin_reference, folder_reference


def fill(folder: Path, count: int) -> None:
    """Pictures of different size and mode: a white square between black sides, each with its own grey in the middle."""
    (folder / "sub").mkdir(parents=True)
    for i in range(count):
        pixels = np.zeros((40 + i, 80 + i, 3), np.uint8)
        pixels[:, 20:60] = 200 + i
        image = Image.fromarray(pixels).convert("L" if i % 2 else "RGB")
        image.save(folder / ("sub" if i % 3 else ".") / f"{i}.{'png' if i % 2 else 'webp'}", lossless=True)
    (folder / "notes.txt").write_text("no picture")


def test_a_folder_gives_disjoint_halves_of_middle_squares(tmp_path: Path) -> None:
    fill(tmp_path / "real", 9)
    found = folder_reference(tmp_path / "real", 5, 16, seed=1)
    assert found.real.shown.shape == (5, 16, 16, 3)
    assert found.other.shown.shape == (4, 16, 16, 3)
    middles = np.concatenate([found.real.shown, found.other.shown])[:, 8, 8, 0]
    assert sorted(middles) == list(range(200, 209)), "every picture once, and of each its middle"
    assert found.real.shown.dtype == np.uint8
    assert "5 of 9" in found.name
    assert np.array_equal(found.real.shown, folder_reference(tmp_path / "real", 5, 16, seed=1).real.shown)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        folder_reference(tmp_path / "none", 4, 16)
    fill(tmp_path / "real", 3)
    with pytest.raises(ValueError, match=r"holds 3 images .* 4 are needed"):
        folder_reference(tmp_path / "real", 4, 16)
    (tmp_path / "real" / "broken.png").write_text("hello")
    with pytest.raises(ValueError, match=r"1 of 4 images in .*broken\.png \(it is of no image format"):
        folder_reference(tmp_path / "real", 4, 16)
    with pytest.raises(ValueError, match="not trained on scenes"):
        builtin_reference(random_family(), 4)
