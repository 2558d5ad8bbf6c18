"""Models of the hub on a made-up GPU: the tokens of the CPU, nothing illegal, and no step that waits for the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mulosd.engine.engine import Engine
from mulosd.engine.hub import Wanted, load_repository

from .device import FakeCuda

pytest.importorskip("transformers", minversion="5.0")

IDS = torch.tensor([[71, 70, 69, 66, 75, 64]])
WANTED = {
    "janus": Wanted("janus", prompt_length=12),
    "emu3": Wanted("emu3", grids=(3, 6), prompt_length=12),
    "glm_image": Wanted("glm-image", grids=(6,), prompt_length=12, first_grid=3),
}
MULO = "mulo:tau=0.02:radius=1:pool=4:window=2"
DECODERS = {
    "janus": ["serial", "zipar:window=2"],
    "emu3": ["serial", "zipar:window=2", f"{MULO}:upsampler=nearest"],
    "glm_image": ["serial", "zipar:window=2", MULO],
}


@pytest.fixture(scope="module", params=WANTED)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    import tiny_repositories

    made: Path = getattr(tiny_repositories, request.param)(tmp_path_factory.mktemp("hub") / "tiny")
    return request.param, made


def test_tokens_are_those_of_the_cpu_and_serial_steps_wait_for_nothing(folder: tuple[str, Path]) -> None:
    model, where = folder
    cpu = Engine(load_repository(where, WANTED[model]))

    def drawn(engine: Engine, decoder: str) -> torch.Tensor:
        given: Any = engine.family.conditioner.precomputed(IDS % 60)
        return engine.generate("named", decoder=decoder, seed=2, features=given, sampling="cfg_scale=1").tokens

    wanted = {decoder: drawn(cpu, decoder) for decoder in DECODERS[model]}
    with FakeCuda() as log:
        gpu = Engine(load_repository(where, WANTED[model]), device="cuda", dtype="float32")
        for decoder, tokens in wanted.items():
            drawn(gpu, decoder)
            log.reset()
            assert torch.equal(drawn(gpu, decoder), tokens), decoder
            assert log.sound(), log.summary()
            # What an image costs once: its condition, the seconds of its stages, its tokens, its pixels.
            where_waited = {place for (_, place) in log.waits}
            assert not any("row_ends" in place or "runner" in place or "batch" in place for place in where_waited)
