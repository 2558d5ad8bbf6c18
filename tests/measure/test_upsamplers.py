"""Up-samplers side by side: each draws with its own weights, all else is shared, and tau rejects the same share."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from mulosd.cli import app
from mulosd.engine import super_resolution
from mulosd.engine.decoding import MuloSD
from mulosd.engine.engine import Engine
from mulosd.engine.models.upsampler import LatentResampler, ResamplerConfig
from mulosd.engine.random_family import random_family
from mulosd.measure.acceptance import Images
from mulosd.measure.upsamplers import Candidate, bench_upsamplers, fidelity, fitted, untrained, upsampler_rows
from mulosd.train.export import export
from mulosd.train.stages import run_stage

from ..tiny_training import noise_pictures, tiny_training

BASE = MuloSD(scale=4, radius=1, pool=2, window=2)
PROMPTS = ["red apple", "blue pear", "apple", "pear"]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(random_family())


@pytest.fixture(scope="module")
def pictures() -> Images:
    rng = np.random.default_rng(3)
    small = rng.integers(256, size=(5, 4, 4, 3), dtype=np.uint8)
    return [("apple", [s, s.repeat(4, axis=0).repeat(4, axis=1)]) for s in small]


def resampler(engine: Engine, seed: int | None = None, target: int = 8) -> LatentResampler:
    """One of random weights, or a copy of the family's own."""
    own = engine.family.resamplers[2, 8]
    made = LatentResampler(replace(own.config, target=target))
    if seed is None:
        made.load_state_dict(own.state_dict())
    return made


def test_rows_differ_by_the_up_sampler_alone(engine: Engine, pictures: Images, tmp_path: Path) -> None:
    torch.manual_seed(5)
    own = engine.family.resamplers[2, 8]
    candidates = [
        Candidate("latent"),
        Candidate("same", resamplers={(2, 8): resampler(engine)}, training={"steps": 3, "pixel": 1.0}),
        Candidate("other", resamplers={(2, 8): resampler(engine, 1)}, training={"steps": 4, "pixel": 2.0}),
        Candidate("lanczos", "pixel"),
    ]
    runs = tmp_path / "runs.jsonl"

    def measured(chosen: list[Candidate], base: MuloSD = BASE) -> dict:  # type: ignore[type-arg]
        return bench_upsamplers(engine, PROMPTS, chosen, base, rejection=0.2, images=pictures, runs=runs, seed=9)

    report = measured(candidates)
    assert engine.family.resamplers[2, 8] is own
    names = [name for name, _ in upsampler_rows(report)]
    assert names == ["serial", *(f"{c.name}: {d}" for c in candidates for d in ("draft-only", "mulo"))]
    by = dict(upsampler_rows(report))
    for decoder in ("draft-only", "mulo"):
        latent, same, other, lanczos = (by[f"{c.name}: {decoder}"] for c in candidates)
        assert same["nll"] == latent["nll"] and same["rejection"] == latent["rejection"]
        assert len({row["nll"] for row in (latent, other, lanczos)}) == 3
    for c in candidates:
        row = by[f"{c.name}: mulo"]
        assert row["settings"]["window"] == 2 and row["settings"]["radius"] == 1
        # Calibrated on these very prompts, though with other seeds: 256 tokens of a share of 0.2.
        assert row["rejection"] == pytest.approx(0.2, abs=0.12)
    found = {entry["name"]: entry for entry in report["upsamplers"]}
    assert found["latent"]["tau"] == found["same"]["tau"] == report["judged_tau"] != found["other"]["tau"]
    assert [row["source"] for row in found["latent"]["acceptance"]] == ["real", "real up-sampled", "draft"]
    assert found["same"]["acceptance"] == found["latent"]["acceptance"][1:] and found["same"]["real"]["psnr"] > 0
    assert found["other"]["acceptance"] != found["same"]["acceptance"]
    assert found["same"]["training"] == {"steps": 3, "pixel": 1.0} and found["lanczos"]["training"] is None
    assert "different numbers of steps: same 3, other 4" in " ".join(report["notes"])
    json.dumps(report)

    # Runs of a variant are not taken for those of the same one trained further.
    again = measured(candidates)
    assert [row["seconds_per_image"] for row in again["rows"]] == [row["seconds_per_image"] for row in report["rows"]]
    further = replace(candidates[1], training={"steps": 5})
    with pytest.raises(ValueError, match="differs in engines"):
        measured([candidates[0], further, *candidates[2:]])


def test_a_stated_tau_is_kept_and_mistakes_are_told(engine: Engine) -> None:
    latent = Candidate("latent")
    report = bench_upsamplers(engine, PROMPTS[:1], [latent, Candidate("lanczos", "pixel")], replace(BASE, tau=0.01))
    assert {row["settings"]["tau"] for row in report["rows"] if row["decoder"] == "mulo"} == {0.01}
    assert report["wanted_rejection"] is None and report["reconstruction_psnr"] is None
    assert "tau=0.01" in report["base"] and "upsampler" not in report["base"]
    misfit = LatentResampler(ResamplerConfig(2, 8, 5, 4, 1))
    for candidates, base, message in (
        ([], BASE, "at least one"),
        ([latent, latent], BASE, "different names"),
        ([latent], replace(BASE, upsampler="pixel"), "leave upsampler"),
        ([latent], BASE.changed(cascade=True), "cascade"),
        ([latent], MuloSD(scale=4), "not calibrated"),
        ([Candidate("x", resamplers={(2, 4): resampler(engine, 1, 4)})], BASE, "no resampler 2->8"),
        ([Candidate("x", resamplers={(2, 8): misfit})], BASE, "4 dimensions"),
    ):
        with pytest.raises(ValueError, match=message):
            bench_upsamplers(engine, PROMPTS[:1], candidates, base)
    with pytest.raises(ValueError, match="has no latent resamplers"):
        Candidate("x", "pixel", {(2, 8): resampler(engine)})


def test_fidelity_is_that_of_the_pictures(engine: Engine, pictures: Images) -> None:
    family = engine.family

    class Told(LatentResampler):
        """Knows the tokens of the large pictures, in their order."""

        def resample(self, tokens: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
            return next(answers)[None]

    image = torch.from_numpy(np.stack([sizes[1] for _, sizes in pictures])).permute(0, 3, 1, 2).float() / 127.5 - 1
    tokens = family.tokenizer.encode(image)
    answers = iter(tokens)
    told = fidelity(fitted(engine, {(2, 8): Told(family.resamplers[2, 8].config)}), pictures, "latent")
    with torch.no_grad():
        error = ((family.tokenizer.decode(tokens) - image) ** 2).mean(dim=(1, 2, 3)).double().numpy()
    # Images of eight bits are compared, so the last digits differ.
    assert told["match"] == 1 and told["psnr"] == pytest.approx(float((10 * np.log10(4 / error)).mean()), abs=2e-3)
    assert fidelity(engine, pictures, "latent")["match"] < 0.5


def test_super_resolution_is_left_out_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not by 3" in untrained(3)[1][0]
    monkeypatch.setattr(super_resolution, "find_spec", lambda name: None)
    found, notes = untrained(4)
    assert [c.name for c in found] == ["lanczos"] and "pip install ncnn" in notes[0]


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(super_resolution, "find_spec", lambda name: None)
    loop = {"steps": 2, "warmup": 1, "decay": 1, "precision": "fp32", "threads": 1}
    upsampler = {
        "pairs": [[4, 8]],
        "model": {"channels": 8, "blocks": 1},
        "batch": 2,
        "variants": {"token": {"pixel": 0.0}, "pixel": {"cross_entropy": 0.0}},
    }
    values = tiny_training(noise_pictures(tmp_path / "pictures", 60), loop, upsampler=upsampler)
    config, run = tmp_path / "tiny.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(values, sort_keys=False))
    for stage in ("tokenizer", "ar", "upsampler"):
        run_stage(stage, config, run)
    run_stage("upsampler", config, run, variant="token")
    family = export(config, run, tmp_path / "family")

    def call(*arguments: object) -> tuple[int, str]:
        where = ("--family", family, "--config", config, "--run", run, "--prompts", 2, "--pictures", 2)
        done = CliRunner().invoke(app, ["bench", "upsamplers", *map(str, (*where, *arguments))])
        return done.exit_code, " ".join(done.output.split())

    base = ("--decoder", "mulo:radius=1:pool=1")
    code, shown = call(*base, "--json", tmp_path / "u.json")
    assert code == 0, shown
    report = json.loads((tmp_path / "u.json").read_text())
    assert [entry["name"] for entry in report["upsamplers"]] == ["latent", "latent/token", "lanczos"]
    assert report["pictures"] == 2 and report["upsamplers"][1]["training"]["steps"] == 2
    assert "latent/token" in shown and "variant pixel is left out" in shown and "sr is left out" in shown
    for arguments, message in (
        (("--variant", "pixel"), "mulosd train upsampler --variant pixel"),
        (("--decoder", "serial"), "this measures mulo"),
        (("--pictures", "-1"), "--pictures"),
        (("--run", tmp_path / "none"), "no such folder"),
        (("--decoder", "mulo:scale=3"), "has no scale 3"),
    ):
        code, shown = call(*base, *arguments) if "--decoder" not in arguments else call(*arguments)
        assert code == 2 and message in shown, shown
    other = {**values, "seed": 5}
    config.write_text(yaml.safe_dump(other))
    run_stage("tokenizer", config, tmp_path / "second")
    code, shown = call(*base, "--run", tmp_path / "second")
    assert code == 2 and "different tokenizers" in shown
