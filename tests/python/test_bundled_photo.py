"""The bundled family of photographs: what it weighs, what it draws, and that evaluations find real photos for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import Result

import mulosd
from mulosd.measure.images import ImageSet
from mulosd.measure.readers.graders import grader_of
from mulosd.measure.readers.lite0 import Lite0Features
from mulosd.measure.references import builtin_reference

FOLDER = Path(mulosd.__file__).parent / "families" / "photo"
MIB = 1 << 20
CLASSES = ["sunflower", "airplane", "leopard", "motorbike", "car", "pagoda", "daisy", "ketch", "watch", "panda"]


def weight(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_bundled_families_stay_small() -> None:
    assert weight(FOLDER) < 12 * MIB
    assert sum(weight(FOLDER.parent / name) for name in mulosd.list_families()) < 30 * MIB


def test_a_class_is_drawn_and_a_near_miss_gets_suggestions(
    run: Callable[..., Result], fails: Callable[..., str]
) -> None:
    assert run("generate", "sunflower", "--family", "photo", "--seed", "1", "--output", "s.png").exit_code == 0
    picture = Image.open("s.png")
    assert picture.size == (128, 128) and np.asarray(picture).std() > 10
    assert "such as sunflower" in fails("generate", "sunflour", "--family", "photo", "--output", "x.png")


def test_kept_features_belong_to_the_family() -> None:
    family = mulosd.Engine.from_pretrained("photo").family
    found = builtin_reference(family, 256)
    assert len(found.real) == len(found.other) == 256


@pytest.mark.slow
@pytest.mark.parametrize("decoder", [mulosd.Serial(), mulosd.MuloSD()], ids=["serial", "mulo"])
def test_pictures_show_their_class(decoder: mulosd.Serial | mulosd.MuloSD) -> None:
    """By chance one of 103 classes is named right; 4 of 20 or more have a chance below 1e-4, and of a family that is
    right half the time fewer than 4 come in one run of a thousand."""
    pytest.importorskip("efficientnet_lite_pytorch")
    engine = mulosd.Engine.from_pretrained("photo")
    prompts = CLASSES * 2
    result = engine.generate(prompts, decoder=decoder, seed=list(range(20)), batch_size=10)
    images = np.stack([np.asarray(image) for image in result.images])
    scores = grader_of(engine.family).grade(prompts, ImageSet(images, Lite0Features()(images)))
    assert sum(score.found for score in scores) >= 4
