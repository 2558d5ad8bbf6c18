"""Tiny repositories, saved once a session, and the engines and reference models on them."""

from __future__ import annotations

from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers", minversion="5.0")


@pytest.fixture(scope="session")
def janus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_repositories import janus

    return janus(tmp_path_factory.mktemp("hub") / "tiny-janus")


@pytest.fixture(scope="session")
def emu3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_repositories import emu3

    return emu3(tmp_path_factory.mktemp("hub") / "tiny-emu3")


@pytest.fixture(scope="session")
def glm_image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_repositories import glm_image

    return glm_image(tmp_path_factory.mktemp("hub") / "tiny-glm-image")
