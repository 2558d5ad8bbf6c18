"""Variants of the latent up-sampler: what they start from, what they may state, and windows of their targets."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from typer.testing import CliRunner

from mulosd.cli import app
from mulosd.engine.family import Family
from mulosd.engine.models.upsampler import ResamplerConfig
from mulosd.train.checkpoint import averaged, checkpoint
from mulosd.train.config import TrainingFile
from mulosd.train.export import export
from mulosd.train.stages import run_stage
from mulosd.train.upsampler import ResamplerTask, trained_variants, variant_names, varied

from ..tiny_training import noise_pictures, tiny_training

CPU = torch.device("cpu")
LOOP = {"steps": 3, "lr": 1e-3, "warmup": 1, "decay": 1, "ema": 0.5, "log_every": 1, "precision": "fp32", "threads": 1}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = noise_pictures(tmp_path_factory.mktemp("pictures"), 12)
    variants = {
        "still": {"pairs": [[4, 8]], "loop": {"lr": 0.0}},
        "gan": {
            "pairs": [[4, 8]],
            "temperature": 0.01,
            "cross_entropy": 0.0,
            "pixel": 2.0,
            "adversarial": 0.1,
            "crop": 4,
        },
    }
    upsampler = {
        "pairs": [[4, 8], [8, 4]],
        "model": {"channels": 8, "blocks": 1},
        "batch": 2,
        "pool": 6,
        "temperature": 0.02,
        "variants": variants,
    }
    values = tiny_training(folder, LOOP, upsampler=upsampler)
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def run(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for stage in ("tokenizer", "ar", "upsampler"):
        run_stage(stage, config, folder)
    return folder


def with_variant(config: Path, **stated: Any) -> TrainingFile:
    values = yaml.safe_load(config.read_text())
    values["upsampler"]["variants"]["new"] = stated
    return TrainingFile(values, config)


def test_a_variant_is_the_section_with_what_it_states(config: Path) -> None:
    training = TrainingFile.load(config)
    assert variant_names(training) == ["still", "gan"]
    section = varied(training, "gan").section("upsampler")
    assert section["pixel"] == 2.0 and section["pairs"] == [[4, 8]] and section["pool"] == 6
    assert "variants" not in section and section["loop"] == LOOP
    assert (
        varied(training, "still").loop("upsampler").lr == 0 and varied(training, "still").loop("upsampler").steps == 3
    )
    assert training.section("upsampler")["pairs"] == [[4, 8], [8, 4]]
    for stated, message in {
        "model": ({"model": {"channels": 4}}, "unknown key 'model'"),
        "loop": ({"loop": {"rate": 1.0}}, "unknown key 'rate'"),
        "pairs": ({"pairs": [[2, 8]]}, r"pairs \[\[2, 8\]\] are none"),
    }.values():
        with pytest.raises(ValueError, match=message):
            varied(with_variant(config, **stated), "new")
    with pytest.raises(ValueError, match=r"no variant 'pixel'.*still, gan"):
        varied(training, "pixel")
    with pytest.raises(ValueError, match="only upsampler has"):
        run_stage("ar", config, config.parent / "none", variant="gan")


@pytest.mark.parametrize("name", ["photo", "photo_gpu"])
def test_the_recipes_vary_the_losses_alone(name: str) -> None:
    training = TrainingFile.load(Path(__file__).parents[2] / "configs" / f"{name}.yaml")
    names = variant_names(training)
    assert names[:4] == ["token", "pixel", "perceptual", "patchgan"]
    sections = [varied(training, v).section("upsampler") for v in names[:4]]
    for again in names[4:]:
        assert {**varied(training, again).section("upsampler"), "pairs": sections[3]["pairs"]} == sections[3]
    losses = ("cross_entropy", "commitment", "pixel", "perceptual", "adversarial")
    used = [tuple(loss for loss in losses if section.get(loss, 0.0) > 0) for section in sections]
    assert used == [losses[:1], losses[1:3], losses[1:4], losses[1:5]]
    others = [{k: v for k, v in s.items() if k not in (*losses, "features", "crop")} for s in sections]
    assert others[1:] == others[:1] * 3 and others[0]["loop"]["steps"] >= 1000


def test_variants_start_from_the_averaged_weights_and_are_exported(config: Path, run: Path, tmp_path: Path) -> None:
    start = averaged(run, "upsampler")
    raw = checkpoint(run, "upsampler")["module"]
    still = run_stage("upsampler", config, run, variant="still")
    assert {k.split(".")[0] for k in still} == {"4-8"}
    weights = [k for k in still if not k.endswith("counts")]
    assert all(torch.equal(still[k], start[k]) for k in weights)
    assert not all(
        torch.equal(raw[k], start[k]) for k in weights
    )  # or the average would not be told from the last step

    with pytest.raises(ValueError, match="mulosd train upsampler --variant gan"):
        trained_variants(TrainingFile.load(config), run, ["gan"])
    gan = run_stage("upsampler", config, run, variant="gan", steps=2)
    assert any(not torch.equal(gan[k], start[k]) for k in weights)
    assert checkpoint(run, "upsampler-gan")["step"] == 2 and checkpoint(run, "upsampler-gan")["task"]
    assert all(torch.equal(v, start[k]) for k, v in averaged(run, "upsampler").items())

    found, notes = trained_variants(TrainingFile.load(config), run)
    assert list(found) == ["still", "gan"] and notes == []
    assert found["gan"][1]["steps"] == 2 and found["gan"][1]["adversarial"] == 0.1
    plain, chosen = (Family.load(export(config, run, tmp_path / str(len(v)), v)) for v in ([], ["still", "gan"]))
    for family, wanted in ((plain, start), (chosen, gan)):
        assert set(family.resamplers) == {(4, 8), (8, 4)}
        assert torch.allclose(family.resamplers[4, 8].enter.weight, wanted["4-8.enter.weight"], atol=1e-3)
        assert torch.allclose(family.resamplers[8, 4].enter.weight, start["8-4.enter.weight"], atol=1e-3)
    assert not torch.equal(plain.resamplers[4, 8].enter.weight, chosen.resamplers[4, 8].enter.weight)
    temperatures = [{pair: m.config.temperature for pair, m in f.resamplers.items()} for f in (plain, chosen)]
    assert temperatures == [{(4, 8): 0.02, (8, 4): 0.02}, {(4, 8): 0.01, (8, 4): 0.02}]


def test_the_command_line(config: Path, run: Path, tmp_path: Path) -> None:
    def call(*arguments: object) -> Any:
        return CliRunner().invoke(app, ["train", *map(str, arguments)])

    where = ("--config", config, "--run", run)
    wrong = call("upsampler", *where, "--variant", "still", "--variant", "lpips", "--steps", 1)
    assert wrong.exit_code == 2 and "no variant 'lpips'" in wrong.stderr and "still" not in wrong.stdout
    assert "give --config" in call("upsampler", "--family", "f", "--run", run, "--variant", "still").stderr
    assert call("upsampler", *where, "--variant", "gan", "--steps", 2).exit_code == 0
    assert call("export", *where, "--variant", "gan", "--output", tmp_path / "family").exit_code == 0
    assert (tmp_path / "family" / "family.json").is_file()


class Shown:
    """Stands in for a tokenizer: a code is one colour, a token 2x2 px of it, and the decoder knows no neighbours."""

    config = SimpleNamespace(patch=2, codebook_size=9, code_dim=3)
    codebook = nn.functional.normalize(torch.randn(9, 3, generator=torch.Generator().manual_seed(1)), dim=-1)

    def eval(self) -> Shown:
        return self

    def requires_grad_(self, _: bool) -> Shown:
        return self

    def to(self, _: torch.device) -> Shown:
        return self

    def decode_latents(self, z: Tensor) -> Tensor:
        self.decoded = z.shape
        return z.movedim(-1, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)


class Drawn:
    """A pool of random tokens, whose pictures are what `Shown` makes of them."""

    def __init__(self, tokenizer: Shown, grids: tuple[int, ...], count: int) -> None:
        self.tokenizer = tokenizer
        generator = torch.Generator().manual_seed(2)
        self.tokens = {g: torch.randint(9, (count, g * g), generator=generator) for g in grids}

    def draw(self, *_: object) -> Drawn:
        return self

    def pictures(self, _: object, grid: int, __: object) -> Tensor:
        codes = self.tokenizer.codebook[self.tokens[grid]].view(-1, grid, grid, 3)
        return codes.movedim(-1, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)


class Told(nn.Module):
    """A resampler that says always the same."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer, self.counts = answer.clone().requires_grad_(), torch.zeros(9)

    def forward(self, _: Tensor) -> Tensor:
        return self.answer

    def pick(self, z: Tensor, codebook: Tensor) -> Tensor:
        return (z @ codebook.t()).argmax(-1)


@pytest.mark.parametrize("crop", [0, 3, 8])
def test_a_window_is_cut_alike_from_prediction_and_picture(crop: int) -> None:
    shown: Any = Shown()
    options = {"cross_entropy": 0.0, "commitment": 0.0, "pixel": 1.0, "batch": 6, "crop": crop}
    task = ResamplerTask([ResamplerConfig(4, 8, 3, 4, 1, 9)], shown, SimpleNamespace(), **options)  # type: ignore[arg-type]
    pool = task.pool = Drawn(shown, (4, 8), 6)  # type: ignore[assignment]
    answer = shown.codebook[pool.tokens[8].view(6, 8, 8)]  # type: ignore[attr-defined]
    task.resamplers["4-8"] = Told(answer)  # type: ignore[assignment]
    side = crop or 8
    corners = set()
    for step in range(8):
        loss, _ = task.loss(np.random.default_rng(step), step, CPU)
        assert float(loss.detach()) < 1e-12 and shown.decoded == (6, side, side, 3)
    # What a window leaves out teaches nothing, what it shows does; windows move from picture to picture.
    wrong = Told(-answer)
    task.resamplers["4-8"] = wrong  # type: ignore[assignment]
    task.loss(np.random.default_rng(0), 0, CPU)[0].backward()
    assert wrong.answer.grad is not None
    for taught in wrong.answer.grad.abs().sum(-1) > 0:
        rows, columns = taught.any(1).nonzero().flatten(), taught.any(0).nonzero().flatten()
        assert taught.sum() == side * side and rows[-1] - rows[0] == columns[-1] - columns[0] == side - 1
        corners.add((int(rows[0]), int(columns[0])))
    assert (len(corners) > 2) == (crop == 3)


def test_a_window_has_a_side() -> None:
    shown: Any = Shown()
    with pytest.raises(ValueError, match="crop must be at least 1"):
        ResamplerTask([ResamplerConfig(4, 8, 3, 4, 1, 9)], shown, SimpleNamespace(), crop=-1)  # type: ignore[arg-type]
