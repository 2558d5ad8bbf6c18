"""Latent up-samplers trained for a converted family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from mulosd.checkpoints.convert import convert_llamagen
from mulosd.cli import app
from mulosd.engine.decoding import DraftOnly, MuloSD
from mulosd.engine.engine import Engine
from mulosd.engine.family import Family
from mulosd.train.losses import Critic, EncoderMaps, perceptual_distance
from mulosd.train.upsampler import train_upsampler


@pytest.fixture
def family(files: Any, tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    made: Path = convert_llamagen(
        files["c2i_8.pt"], files["vq.pt"], tmp_path / "family", drafter=files["c2i_4.pt"], heads=2
    )
    return made


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        blocks = rng.integers(256, size=(4, 4, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((40, 32), Image.Resampling.BILINEAR).save(folder / f"{i}.png")
    return folder


def test_up_and_down_samplers_are_trained_and_used(family: Path, images: Path, tmp_path: Path) -> None:
    options = {"channels": 16, "blocks": 2, "batch": 2, "precision": "fp32", "lr": 3e-3}
    before = Engine.from_pretrained(family).generate("3", decoder=DraftOnly(), seed=1).tokens
    weights = (family / "ar-8.safetensors").read_bytes()
    run = tmp_path / "run"
    trained = train_upsampler(family, images, run, steps=60, down=True, adversarial=0.05, **options)
    assert trained == ["4-8", "8-4"]
    log = [json.loads(line)["loss"] for line in (run / "upsampler.jsonl").read_text().splitlines()]
    assert log[-1] < log[0]
    assert (family / "ar-8.safetensors").read_bytes() == weights
    engine = Engine.from_pretrained(family)
    assert engine.family.upsampler == "latent" and set(engine.family.resamplers) == {(4, 8), (8, 4)}
    assert float(engine.family.resamplers[4, 8].counts.sum()) > 0  # type: ignore[union-attr]
    after = engine.generate("3", decoder=DraftOnly(), seed=1).tokens
    pixel = engine.generate("3", decoder=DraftOnly(upsampler="pixel"), seed=1).tokens
    assert torch.equal(before, pixel) and not torch.equal(after, pixel)
    engine.generate("3", decoder=MuloSD(tau=0.01, radius=1, pool=2, rows_per_cycle=4))
    # Another direction joins those that are there.
    train_upsampler(family, images, tmp_path / "second", steps=1, **options)
    assert set(Family.load(family).resamplers) == {(4, 8), (8, 4)}
    assert sorted(p.name for p in family.iterdir() if p.name.startswith(".")) == []


def test_an_interrupted_training_ends_like_a_whole_one(family: Path, images: Path, tmp_path: Path) -> None:
    options = {"channels": 8, "blocks": 1, "batch": 1, "precision": "fp32", "adversarial": 0.1, "save_every": 1}
    results = []
    for stops in ((6,), (3, 6)):
        run = tmp_path / f"run{len(stops)}"
        for steps in stops:
            train_upsampler(family, images, run, steps=steps, lr=1e-3, **options)
        results.append(torch.load(run / "upsampler.pt", weights_only=True))
    assert results[0]["task"]
    for part in ("module", "ema", "task"):
        whole, interrupted = results[0][part], results[1][part]
        assert whole.keys() == interrupted.keys()
        assert all(torch.allclose(whole[k], interrupted[k], atol=1e-6) for k in whole)


def test_the_critic_learns_and_keeps_its_state() -> None:
    torch.manual_seed(0)
    real, image = torch.ones(2, 3, 16, 16), torch.zeros(2, 3, 16, 16, requires_grad=True)
    critic = Critic(8, lr=1e-2)
    first = float(critic.judge(image, real).detach())
    for _ in range(20):
        last = critic.judge(image, real)
    assert float(last.detach()) > first + 0.5
    last.backward()
    assert image.grad is not None and all(p.grad is None or p.requires_grad for p in critic.net.parameters())
    again = Critic(8, lr=1e-2)
    again.restore({k: v.clone() for k, v in critic.saved().items()})
    assert torch.allclose(again.judge(image, real), critic.judge(image, real))


def test_the_perceptual_distance(family: Path) -> None:
    tokenizer = Family.load(family).tokenizer
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    other = image.clone().requires_grad_()
    assert float(perceptual_distance(EncoderMaps(tokenizer), image, image)) < 1e-6
    distance = perceptual_distance(EncoderMaps(tokenizer), other * 0.5, image)
    distance.backward()
    assert float(distance) > 1e-4 and other.grad is not None and float(other.grad.abs().sum()) > 0


def test_mistakes_on_the_command_line(family: Path, images: Path, tmp_path: Path) -> None:
    def fails(*arguments: object) -> str:
        result = CliRunner().invoke(app, ["train", "upsampler", "--run", str(tmp_path / "run"), *map(str, arguments)])
        assert result.exit_code == 2, result.output
        return result.stderr

    assert "give either --config" in fails()
    assert "name a folder of images" in fails("--family", family)
    assert "has no scale 3" in fails("--family", family, "--images", images, "--scale", 3)
    assert "is not rewritten" in fails("--family", "emoji", "--images", images)
