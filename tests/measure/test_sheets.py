"""The contact sheet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mulosd.measure.sheets import LINE, MARGIN, contact_sheet


def test_pictures_and_captions_have_their_places(tmp_path: Path) -> None:
    colours = ["red", "lime", "blue"]
    path = tmp_path / "sheet.png"
    captions = ["short", "a caption that is far too long for a single line of this sheet", ""]
    contact_sheet([Image.new("RGB", (256, 256), c) for c in colours], captions, path, columns=2, size=64)
    sheet = np.asarray(Image.open(path))
    assert sheet.shape[1] == 2 * 64 + 3 * MARGIN
    assert sheet[MARGIN + 32, MARGIN + 32].tolist() == [255, 0, 0]
    assert sheet[MARGIN + 32, 2 * MARGIN + 64 + 32].tolist() == [0, 255, 0]
    below = np.flatnonzero((sheet[:, MARGIN + 32] == [0, 0, 255]).all(axis=-1))
    assert below.min() > MARGIN + 64 + 3 * LINE, "the second row starts below the longest caption of the first"
    text = sheet[MARGIN + 64 : below.min() - MARGIN]
    assert (text[:, 2 * MARGIN + 64 :] < 128).any()


def test_captions_must_match(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="as many captions"):
        contact_sheet([Image.new("RGB", (8, 8))], [], tmp_path / "x.png")
    with pytest.raises(ValueError, match="as many captions"):
        contact_sheet([], [], tmp_path / "x.png")
    with pytest.raises(ValueError, match="columns"):
        contact_sheet([Image.new("RGB", (8, 8))], ["x"], tmp_path / "x.png", columns=0)
