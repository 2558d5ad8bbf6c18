"""A small family for the examples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mulosd.engine.family_config import Calibration
from mulosd.engine.random_family import random_family


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random family: images of 16 px, scales 2 and 4, calibrated."""
    made = random_family()
    found = [Calibration(scale, "latent", pool=3, radius=1, tau=0.05) for scale in (2, 4)]
    made.config = replace(made.config, calibrations={c.key: c for c in found})
    return made.save(tmp_path_factory.mktemp("families") / "random")
