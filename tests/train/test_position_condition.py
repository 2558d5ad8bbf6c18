"""What the captions stage teaches positions and the text encoder, that it lasts, and where training may start."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from mulosd.data.family import scene_config
from mulosd.data.scenes import Scene, sample_scene
from mulosd.engine.conditioning import PhraseConditioner
from mulosd.engine.family import Family, bundled_folder
from mulosd.engine.models.transformer import TransformerConfig
from mulosd.train.ar import ARTask, trained_ar
from mulosd.train.captions import LEAST_CHANGE, CaptionsTask, change_of_order, check_order
from mulosd.train.checkpoint import averaged
from mulosd.train.config import TrainingFile
from mulosd.train.export import export
from mulosd.train.probe import Probe, held_out, probe, swapped
from mulosd.train.stages import TASKS, run_stage

BUNDLED = bundled_folder() / "emoji"
SMOKE = Path(__file__).parents[2] / "configs" / "smoke.yaml"


def varied(path: Path, **changes: Any) -> Path:
    """The smoke recipe as a file of its own, on one thread, with changes of `ar.model` and of the top level."""
    values = yaml.safe_load(SMOKE.read_text())
    values["data"]["sprites"] = str((SMOKE.parent / values["data"]["sprites"]).resolve())
    for section in values.values():
        if isinstance(section, dict) and "loop" in section:
            section["loop"]["threads"] = 1
    values["ar"]["model"] |= changes.pop("model", {})
    path.write_text(yaml.safe_dump(values | changes, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return varied(tmp_path_factory.mktemp("recipe") / "smoke.yaml")


@pytest.fixture(scope="module")
def taught(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the smoke recipe whose captions stage is finished."""
    run = tmp_path_factory.mktemp("taught")
    run_stage("tokenizer", recipe, run, steps=1)
    run_stage("captions", recipe, run)
    return run


def caption_task(run: Path) -> CaptionsTask:
    task = TASKS["captions"](TrainingFile.load(SMOKE), run)
    assert isinstance(task, CaptionsTask)
    task.module.load_state_dict(averaged(run, "captions"))
    return task


def test_cells_name_what_covers_them() -> None:
    task = TASKS["captions"](TrainingFile.load(SMOKE), Path("unused"))
    assert isinstance(task, CaptionsTask)
    cells = np.asarray(task.cells(Scene(("cat",), ((1, 4),), "white", "single", "", ""))).reshape(8, 8)
    cat, white = task.objects.index("cat"), len(task.objects) + task.backgrounds.index("white")
    assert (cells[1:4, 4:7] == cat).all() and (cells == cat).sum() == 9 and (cells == white).sum() == 55


@torch.no_grad()
def test_positions_learn_what_stands_where(taught: Path) -> None:
    """Of held-out pairs the likelier object of each half is the one that the caption puts there."""
    task = caption_task(taught)
    assert task.position is not None
    right, asked, rng = 0, 0, np.random.default_rng(5)
    while asked < 240:
        scene = sample_scene(task.scenes, rng)
        if scene.kind != "pair" or not scene.is_held_out(task.scenes.held_out):
            continue
        ids = torch.tensor([task.vocabulary.encode(scene.caption, task.text.config.length)])
        likely = task.heads["cell"](task.position(task.text(ids), 8))[0, :, : len(task.objects)].view(8, 8, -1)
        for name, half in zip(scene.objects, halves(likely, scene.relation), strict=True):
            right += int(half.flatten(0, 1).logsumexp(0).argmax()) == task.objects.index(name)
            asked += 1
    assert right / asked > 0.7, "both objects without their order would be right in half"


def halves(cells: torch.Tensor, relation: str) -> list[torch.Tensor]:
    """The cells of the first and of the second object named."""
    first, second = cells.chunk(2, dim=0 if relation in ("above", "below") else 1)
    return [first, second] if relation in ("left of", "above") else [second, first]


def test_the_order_of_objects_is_told_and_its_loss_is_found_out(taught: Path) -> None:
    config = TrainingFile.load(SMOKE)
    conditioner = config.phrases("captions")
    assert change_of_order(conditioner, config.scenes()) < 0.1, "untrained"
    with pytest.raises(ValueError, match="does not tell 'a left of b' from 'b left of a'"):
        check_order(conditioner, config.scenes())
    conditioner.text.load_state_dict(caption_task(taught).text.state_dict())
    assert change_of_order(conditioner, config.scenes()) > LEAST_CHANGE
    check_order(conditioner, config.scenes())


def test_the_bundled_family_knows_the_order_of_objects() -> None:
    family = Family.load(BUNDLED)
    assert isinstance(family.conditioner, PhraseConditioner)
    assert change_of_order(family.conditioner, scene_config(family)) > 2 * LEAST_CHANGE
    sizes = family.ar.config
    assert isinstance(sizes, TransformerConfig) and sizes.position_cond == 128


def test_one_kind_of_object_has_no_order() -> None:
    config = TrainingFile.load(SMOKE)
    alone = replace(config.scenes(), objects={"apple": "apples"})
    check_order(config.phrases("captions"), alone)
    with pytest.raises(ValueError, match="two objects"):
        change_of_order(config.phrases("captions"), alone)


def test_the_ar_stage_leaves_what_the_captions_taught(recipe: Path, taught: Path, tmp_path: Path) -> None:
    run = shutil.copytree(taught, tmp_path / "run")
    run_stage("ar", recipe, run, steps=3)
    learnt, trained = averaged(run, "captions"), torch.load(run / "ar.pt", weights_only=True)
    for weights in (trained["module"], trained["ema"]):
        for ours, theirs in (("text.", "text."), ("position.", "ar.position_cond.")):
            names = [name for name in learnt if name.startswith(ours)]
            assert names
            for name in names:
                assert torch.equal(learnt[name], weights[theirs + name.removeprefix(ours)]), name
    untrained = TASKS["ar"](TrainingFile.load(SMOKE), run)
    before = untrained.module.state_dict()
    for name in ("ar.position_out.weight", "ar.blocks.0.wo.weight"):
        assert not torch.equal(trained["module"][name], before[name]), "the rest is trained"


def test_the_text_stage_trains_the_encoder_whatever_the_ar_stage_leaves(
    recipe: Path, taught: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(taught, tmp_path / "run")
    run_stage("ar", recipe, run, steps=1)
    run_stage("text", recipe, run, steps=2)
    before, after = averaged(run, "ar"), averaged(run, "text")
    assert not torch.equal(before["text.embedding.weight"], after["text.embedding.weight"])
    assert torch.equal(before["ar.blocks.0.wo.weight"], after["ar.blocks.0.wo.weight"])


def test_an_encoder_that_lost_the_order_is_not_exported(recipe: Path, taught: Path, tmp_path: Path) -> None:
    run = shutil.copytree(taught, tmp_path / "run")
    for stage in ("ar", "upsampler", "reader"):
        run_stage(stage, recipe, run, steps=1)
    family = Family.load(export(recipe, run, tmp_path / "family"))
    assert isinstance(family.conditioner, PhraseConditioner)
    assert change_of_order(family.conditioner, TrainingFile.load(SMOKE).scenes()) > LEAST_CHANGE
    state = torch.load(run / "ar.pt", weights_only=True)
    state["ema"]["text.position"] += 1000
    torch.save(state, run / "ar.pt")
    with pytest.raises(ValueError, match="freeze_text"):
        export(recipe, run, tmp_path / "lost")
    assert not (tmp_path / "lost").exists()


@pytest.mark.slow
def test_a_family_without_position_condition_is_a_start_for_one_with_it(tmp_path: Path) -> None:
    """Its models and up-samplers come along; the way back is refused, for what was learnt would be dropped."""
    plain = varied(tmp_path / "plain.yaml", model={"position_cond": 0})
    for stage in ("tokenizer", "captions", "ar", "upsampler", "reader"):
        run_stage(stage, plain, tmp_path / "plain", steps=None if stage == "captions" else 1)
    old = Family.load(export(plain, tmp_path / "plain", tmp_path / "family"))
    further = varied(tmp_path / "further.yaml", init=str(tmp_path / "family"))
    run_stage("captions", further, tmp_path / "run")
    task = TASKS["ar"](TrainingFile.load(further), tmp_path / "run")
    assert isinstance(task, ARTask)
    state = task.ar.state_dict()
    for name, value in old.ar.state_dict().items():
        assert torch.equal(state[name], value.float()), name
    run_stage("ar", further, tmp_path / "run", steps=1)
    new = Family.load(export(further, tmp_path / "run", tmp_path / "grown"))
    assert new.resamplers.keys() == old.resamplers.keys() and new.resamplers
    for pair, resampler in old.resamplers.items():
        for name, value in resampler.state_dict().items():
            assert torch.equal(new.resamplers[pair].state_dict()[name], value)
    for name in ("reader.safetensors", "sprites.png"):
        assert (tmp_path / "grown" / name).read_bytes() == (tmp_path / "family" / name).read_bytes()

    values = yaml.safe_load(further.read_text())
    values["upsampler"]["pairs"] = [[8, 16]]
    further.write_text(yaml.safe_dump(values, sort_keys=False))
    assert set(Family.load(export(further, tmp_path / "run", tmp_path / "one")).resamplers) == {(8, 16)}
    values["upsampler"]["pairs"] = [[8, 16], [8, 24]]
    further.write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(ValueError, match="no resampler 8 -> 24"):
        export(further, tmp_path / "run", tmp_path / "two")

    again = varied(tmp_path / "again.yaml", init=str(tmp_path / "grown"))
    task = TASKS["ar"](TrainingFile.load(again), tmp_path / "run")
    assert isinstance(task, ARTask) and task.ar.position_cond is not None
    kept = trained_ar(TrainingFile.load(further), tmp_path / "run")[1].position_cond
    assert kept is not None
    for name, value in kept.state_dict().items():
        assert torch.equal(task.ar.position_cond.state_dict()[name], value)
    back = varied(tmp_path / "back.yaml", init=str(tmp_path / "grown"), model={"position_cond": 0})
    with pytest.raises(ValueError, match="other sizes"):
        TASKS["ar"](TrainingFile.load(back), tmp_path / "none")


def test_a_single_object_may_stand_anywhere() -> None:
    config = replace(TrainingFile.load(SMOKE).scenes(), mix=(1.0, 0, 0, 0, 0, 0), jitter=1)
    rng = np.random.default_rng(0)
    near, free = (
        {sample_scene(replace(config, free_single=free), rng).cells for _ in range(400)} for free in (False, True)
    )
    assert len(near) == 4 and len(free) == 36


def test_pairs_stay_near_their_places_where_a_single_object_is_free() -> None:
    config = replace(TrainingFile.load(SMOKE).scenes(), mix=(0, 1.0, 0, 0, 0, 0), jitter=1)
    drawn = (sample_scene(replace(config, free_single=True), np.random.default_rng(i)) for i in range(200))
    assert len({scene.cells for scene in drawn if scene.relation == "left of"}) <= 8


def test_a_run_is_probed(recipe: Path, taught: Path, tmp_path: Path) -> None:
    run = shutil.copytree(taught, tmp_path / "run")
    for stage in ("ar", "reader"):
        run_stage(stage, recipe, run, steps=1)
    first, *grids = probe(recipe, run, [8], prompts=3, pairs=5, seed=1)
    assert float(first.split()[4]) > LEAST_CHANGE
    assert re.fullmatch(
        r"8x8: swapped captions [+-][\d.]+ nats an image, right in \d of 5; scenes right [\d.]+%, "
        r"objects [\d.]+% of 3 prompts",
        *grids,
    )
    with pytest.raises(ValueError, match=r"no grid 12 .* \[8, 16\]"):
        next(probe(recipe, run, [12], prompts=0, pairs=5, seed=1))


def test_the_gap_is_the_likelihood_of_the_other_caption_less_that_of_the_own(
    recipe: Path, taught: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(taught, tmp_path / "run")
    run_stage("ar", recipe, run, steps=1)
    asked = Probe(TrainingFile.load(recipe), run)
    told = held_out(asked.scenes, 3, 2, "pair")
    assert [scene.kind for scene in told] == ["pair"] * 3
    assert swapped(Scene(("cat", "apple"), ((0, 0), (0, 4)), "blue", "pair", "left of", "")) == (
        "an apple left of a cat on a blue background"
    )

    def nll(captions: list[str], tokens: torch.Tensor, grid: int) -> torch.Tensor:
        own = [scene.caption for scene in told]
        assert tokens.shape == (3, 64) and grid == 8
        return torch.tensor([1.0, 2.0, 3.0]) if captions == own else torch.tensor([2.0, 1.5, 7.0])

    asked.nll = nll  # type: ignore[method-assign]
    gap = asked.gap(8, 3, 2)
    assert (gap.nats, gap.right, gap.images) == (1.5, 2, 3)


def test_captions_go_on_from_what_a_family_knows_of_them(tmp_path: Path) -> None:
    values = yaml.safe_load((SMOKE.parent / "emoji.yaml").read_text())
    values |= {"init": str(BUNDLED), "captions": {"from_init": True, "loop": {"steps": 1}}}
    values["data"]["sprites"] = str(BUNDLED / "sprites.png")

    def task(**changes: Any) -> CaptionsTask:
        path = tmp_path / "emoji.yaml"
        path.write_text(yaml.safe_dump(values | changes, sort_keys=False))
        made = TASKS["captions"](TrainingFile.load(path), tmp_path / "run")
        assert isinstance(made, CaptionsTask) and made.position is not None
        return made

    family, going_on = Family.load(BUNDLED), task()
    for name, value in family.conditioner.weights["text"].state_dict().items():
        assert torch.equal(going_on.text.state_dict()[name], value.float())
    for name, value in family.ar.position_cond.state_dict().items():
        assert torch.equal(going_on.position.state_dict()[name], value.float())
    anew = task(captions={"loop": {"steps": 1}})
    assert any(
        not torch.equal(value, going_on.text.state_dict()[name]) for name, value in anew.text.state_dict().items()
    )

    fewer = {**values["data"], "objects": dict(list(values["data"]["objects"].items())[1:])}
    with pytest.raises(ValueError, match="other words or another text encoder"):
        task(data=fewer)
    with pytest.raises(ValueError, match="from_init must be true or false, got 'yes please'"):
        task(captions={"from_init": "yes please"})
    del values["init"]
    with pytest.raises(ValueError, match="from_init needs `init`"):
        task()
