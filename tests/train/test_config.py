"""Training files: what they may state, and what is said of one that states something else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mulosd.data.scenes import sample_scene
from mulosd.measure.readers.classes import ClassReader
from mulosd.train.ar import ARTask
from mulosd.train.captions import CaptionsTask
from mulosd.train.checkpoint import averaged, checkpoint
from mulosd.train.config import TrainingFile
from mulosd.train.eagle import EagleTask
from mulosd.train.reader import ReaderTask
from mulosd.train.sources import SceneSource
from mulosd.train.srgan import SuperResolverTask
from mulosd.train.stages import run_stage
from mulosd.train.tokenizer import TokenizerTask, tokenizer_config
from mulosd.train.upsampler import ResamplerTask, resampler_configs, variant_names, varied

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
SMOKE = next(path for path in CONFIGS if path.name == "smoke.yaml")
# Drawn from the scenes of smoke.yaml with seed 5, before relations could have shares.
UNWEIGHED = [
    "a car, a panda and a cat on a blue background",
    "three cats on a blue background",
    "a panda above a cat on a white background",
    "two apples on a blue background",
    "two cars on a white background",
    "a cat right of an apple on a white background",
]
SECTIONS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "tokenizer": (TokenizerTask, ("model",)),
    "captions": (CaptionsTask, ()),
    "ar": (ARTask, ("model", "grids", "text", "classes", "phases", "relations")),
    "text": (ARTask, ()),
    "upsampler": (ResamplerTask, ("model", "pairs", "variants")),
    "srgan": (SuperResolverTask, ("model",)),
    "reader": (ReaderTask, ()),
    "classifier": (ClassReader.fit, ()),
    "eagle": (EagleTask, ("model", "family")),
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_recipes_state_what_their_tasks_take(path: Path) -> None:
    config = TrainingFile.load(path)
    stated = [name for name in SECTIONS if name in config.values]
    assert {"tokenizer", "ar", "upsampler"} <= set(stated)
    for name in stated:
        task, apart = SECTIONS[name]
        values = config.options(name, task, *apart)
        assert values == {k: v for k, v in config.section(name).items() if k not in ("loop", *apart)}
        if name != "classifier":
            assert config.loop(name).steps == config.section(name)["loop"]["steps"]
    assert tokenizer_config(config).codebook_size > 0 and resampler_configs(config)
    for name in variant_names(config):
        varied(config, name)


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        ("tokenizer", {"crops": 64}, "tokenizer has the unknown key 'crops'; possible are loop, model, batch, crop"),
        ("tokenizer", {"held_out": 3}, "tokenizer has the unknown key 'held_out'"),
        ("tokenizer", {"perceptual": "much"}, r"tokenizer\.perceptual must be float, got 'much'"),
        ("tokenizer", {"model": {"codes": 4}}, r"tokenizer\.model: lacks the key 'channels'"),
        ("tokenizer", {"model": {"channels": [8], "codes": 4}}, r"tokenizer\.model: has the unknown key 'codes'"),
        ("tokenizer", {"model": [8]}, r"tokenizer\.model must be an object"),
        ("tokenizer", {"loop": {"steps": 3, "rate": 1}}, r"tokenizer\.loop has the unknown key 'rate'"),
        ("tokenizer", {"loop": {"lr": 1}}, r"tokenizer\.loop: lacks the key 'steps'"),
        ("tokenizer", {"loop": {"steps": "many"}}, r"tokenizer\.loop\.steps must be int, got 'many'"),
        ("tokenizer", {"loop": {"steps": 0}}, r"tokenizer\.loop: steps must be at least 1"),
        (
            "ar",
            {"relations": {"beside": 1}},
            r"ar\.relations has the unknown key 'beside'; possible are left of, right",
        ),
        ("ar", {"relations": {"above": "much"}}, r"ar\.relations\.above must be float, got 'much'"),
        ("ar", {"relations": {"above": 0}}, r"ar\.relations: relations needs 4 shares"),
        ("ar", {"relations": {"above": -1, "below": 2}}, r"ar\.relations: relations needs 4 shares"),
        ("captions", {"position_cond": 3}, "captions has the unknown key 'position_cond'"),
        ("reader", {"model": {}}, "reader has the unknown key 'model'; possible are loop, batch, spoiled, channels"),
    ],
)
def test_a_section_says_what_it_may_state(tmp_path: Path, stage: str, change: dict[str, Any], message: str) -> None:
    values = yaml.safe_load(SMOKE.read_text())
    values["data"]["sprites"] = str((SMOKE.parent / values["data"]["sprites"]).resolve())
    values[stage] |= change
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ValueError, match=message) as raised:
        run_stage(stage, path, tmp_path / "run")
    assert str(path) in str(raised.value)
    assert not (tmp_path / "run").exists(), "the mistake shows before training begins"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"family: [", "no YAML that can be read"),
        (b"\xff\xfe\x00", "no UTF-16 text"),
        (b"- family", "must hold a mapping"),
        (b"family: x\ndata: 3\n", "data must be an object"),
        (b"family: x\ndata: {kind: folder}\nsampling: {cfg: 3}\n", "sampling: has the unknown key 'cfg'"),
    ],
)
def test_a_broken_training_file_is_named(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=message) as raised:
        TrainingFile.load(path)
    assert str(path) in str(raised.value)


def test_numbers_may_be_written_as_yaml_reads_them_as_text(tmp_path: Path) -> None:
    assert isinstance(yaml.safe_load("3e-4"), str)
    path = tmp_path / "x.yaml"
    path.write_text("family: x\ndata: {kind: folder}\nsrgan: {adversarial: 1e-2, loop: {steps: 5, lr: 3e-4}}\n")
    config = TrainingFile.load(path)
    assert config.loop("srgan").lr == 3e-4 and config.options("srgan", SuperResolverTask) == {"adversarial": 1e-2}


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04 cut"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ar.pt").write_bytes(content)
    for read in (averaged, checkpoint):
        with pytest.raises(ValueError, match=r"ar\.pt is no checkpoint of training, or damaged"):
            read(tmp_path, "ar")


def test_relations_are_drawn_as_often_as_the_recipe_says_and_prompts_as_ever(tmp_path: Path) -> None:
    config = TrainingFile.load(SMOKE)
    scenes = config.scenes()
    source = config.source(relations={"above": 3, "below": 1})
    assert isinstance(source, SceneSource)
    weighed = source.renderer.config
    rng = np.random.default_rng(0)
    counted = Counter(scene.relation for scene in (sample_scene(weighed, rng) for _ in range(4000)) if scene.relation)
    assert set(counted) == {"above", "below"}
    # Within four standard deviations of 3 in 4.
    n = sum(counted.values())
    assert abs(counted["above"] / n - 0.75) < 4 * (0.75 * 0.25 / n) ** 0.5
    assert config.source().renderer.config == scenes  # type: ignore[attr-defined]
    rng = np.random.default_rng(5)
    assert [sample_scene(scenes, rng).caption for _ in range(6)] == UNWEIGHED
