"""Training: every stage of the smoke family, resuming, determinism, export, and one's own folder of images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mulosd.data.family import scene_words
from mulosd.data.scenes import Scene
from mulosd.engine.decoding import Eagle, MuloSD, Serial
from mulosd.engine.engine import Engine
from mulosd.engine.family import Family
from mulosd.engine.random_family import random_family
from mulosd.train.ar import ARTask
from mulosd.train.captions import CaptionsTask, raster_order
from mulosd.train.checkpoint import averaged
from mulosd.train.config import TrainingFile
from mulosd.train.eagle import EagleTask, attach
from mulosd.train.export import export
from mulosd.train.loop import LoopConfig, processor
from mulosd.train.sources import FolderSource
from mulosd.train.stages import TASKS, run_stage
from mulosd.train.token_pool import TokenPool
from mulosd.train.upsampler import ResamplerTask

CONFIGS = Path(__file__).parents[2] / "configs"
SMOKE = CONFIGS / "smoke.yaml"


@pytest.mark.slow
def test_a_family_is_trained_exported_and_generates(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for stage in ("tokenizer", "captions", "ar", "upsampler", "reader", "text", "eagle"):
        run_stage(stage, SMOKE, run)
    log = [json.loads(line) for line in (run / "ar.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 40 and log[-1]["loss"] < log[0]["loss"]
    folder = export(SMOKE, run, tmp_path / "family")
    assert {p.name for p in folder.iterdir()} >= {"family.json", "ar.safetensors", "sprites.png", "reader.safetensors"}
    engine = Engine.from_pretrained(folder)
    assert engine.family.scales == (2,) and scene_words(engine.family)[0] == ["apple", "panda", "cat", "car"]
    result = engine.generate(
        "a panda left of a cat on a blue background", decoder=MuloSD(tau=0.01, radius=1, pool=4), seed=1
    )
    assert result.images[0].size == (128, 128) and not result.warnings
    assert engine.generate("two cars", decoder=Serial(8)).tokens.shape == (1, 8, 8)
    drafts = [json.loads(line) for line in (run / "eagle.jsonl").read_text().splitlines()]
    assert drafts[-1]["step"] == 30 and drafts[-1]["kl"] < drafts[0]["kl"]
    serial, eagle = (engine.generate("two cars", decoder=d, seed=3) for d in (Serial(), Eagle(coupled=True)))
    assert torch.equal(serial.tokens, eagle.tokens)
    attached(run, folder, tmp_path)
    with pytest.raises(ValueError, match="exists already"):
        export(SMOKE, run, folder)

    values = yaml.safe_load(SMOKE.read_text()) | {"init": str(folder)}
    values["data"]["sprites"] = str((SMOKE.parent / values["data"]["sprites"]).resolve())
    further = tmp_path / "further.yaml"
    further.write_text(yaml.safe_dump(values, sort_keys=False))
    run_stage("ar", further, tmp_path / "second", steps=20)
    second = [json.loads(line) for line in (tmp_path / "second" / "ar.jsonl").read_text().splitlines()]
    assert second[-1]["step"] == 20 and second[0]["loss"] < log[0]["loss"]
    run_stage("upsampler", further, tmp_path / "second", steps=2)
    with_reader = export(further, tmp_path / "second", tmp_path / "exported")
    assert (with_reader / "reader.safetensors").read_bytes() == (folder / "reader.safetensors").read_bytes()
    values["ar"]["grids"] = [*values["ar"]["grids"], 24]
    values["ar"]["phases"] = [{"until": 100, "shares": {24: 1.0}, "batch": {24: 2}}]
    further.write_text(yaml.safe_dump(values, sort_keys=False))
    task = TASKS["ar"](further_config := TrainingFile.load(further), tmp_path / "grown")
    old, new = Family.load(folder).ar, task.ar
    assert further_config.values["init"] == str(folder)
    tokens = torch.randint(old.config.vocab_size, (1, 64), generator=torch.Generator().manual_seed(0))
    cond = torch.randn(1, old.config.cond_len, old.config.cond_dim)
    torch.testing.assert_close(new(cond, tokens, 8), old(cond, tokens, 8))
    # The corners of the new grid are those of the largest old one.
    largest, added = old.row_embeddings[-1].weight, new.row_embeddings[-1].weight
    torch.testing.assert_close(added[[0, -1]], largest[[0, -1]])
    assert len(added) == 24

    values["data"]["backgrounds"] = {"black": [0, 0, 0]}
    further.write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(ValueError, match="other words"):
        run_stage("ar", further, tmp_path / "third")


def attached(run: Path, family: Path, tmp_path: Path) -> None:
    """A drafter is trained against a family alone, and attached to it; one of other sizes is refused."""
    values = yaml.safe_load(SMOKE.read_text())
    values["data"]["sprites"] = str((SMOKE.parent / values["data"]["sprites"]).resolve())
    values["eagle"] |= {"family": str(family)}
    path = tmp_path / "eagle.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    run_stage("eagle", path, tmp_path / "drafter", steps=2)
    before = (family / "eagle.safetensors").read_bytes()
    attach(path, tmp_path / "drafter", family)
    assert (family / "eagle.safetensors").read_bytes() != before
    assert Engine.from_pretrained(family).generate("two cars", decoder=Eagle(), seed=3).stats[0].accepted
    values["eagle"]["model"]["ffn_dim"] = 48
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(ValueError, match="does not fit family 'smoke'"):
        attach(path, tmp_path / "drafter", family)
    with pytest.raises(ValueError, match="train eagle"):
        attach(path, tmp_path / "nothing", family)
    values["data"]["backgrounds"] = {"black": [0, 0, 0]}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(ValueError, match="other words"):
        run_stage("eagle", path, tmp_path / "words")


def test_features_of_the_pool_are_the_frozen_models_own() -> None:
    """Also: a picture does not depend on which came first, and a pool holds no more than it should."""
    family = random_family(grids=(4,), drafter=True)
    assert family.eagle is not None

    class Flat:
        def image(self, rng: np.random.Generator, size: int, crop: int) -> np.ndarray:  # type: ignore[type-arg]
            raise AssertionError("the task asks for captioned pictures alone")

        def captioned(self, rng: np.random.Generator, sizes: tuple[int, ...]) -> tuple[str, list[np.ndarray]]:  # type: ignore[type-arg]
            return "red apple", [rng.integers(255, size=(s, s, 3)).astype(np.uint8) for s in sizes]

    def task(dropout: float) -> EagleTask:
        assert family.eagle is not None
        parts = (family.eagle, family.conditioner, family.tokenizer, Flat())
        return EagleTask(*parts, batch={4: 3}, pool=5, cond_dropout=dropout, feature_noise=0.0)

    one, two, cpu = task(0.0), task(0.0), torch.device("cpu")
    with torch.no_grad():
        first = one.pictures(4, [0, 1, 2], cpu)
        two.pictures(4, [2], cpu)
        assert all(torch.allclose(a, b) for a, b in zip(first, two.pictures(4, [0, 1, 2], cpu), strict=True))
        cond, tokens, hidden = first
        assert torch.allclose(family.ar.logits(hidden), family.ar(cond, tokens, 4)[:, 1:], atol=1e-4)
        assert torch.equal(task(1.0).pictures(4, [0], cpu)[0], family.null_features(1))
        for step in range(8):
            one.loss(np.random.default_rng(step), step, cpu)
    assert set(one.pool) == {(4, n) for n in range(5)}


@pytest.mark.slow
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    values = yaml.safe_load(SMOKE.read_text())
    values["data"]["sprites"] = str((SMOKE.parent / values["data"]["sprites"]).resolve())
    values["upsampler"]["loop"] |= {"steps": 6, "precision": "fp32", "threads": 1, "save_every": 3}
    values["tokenizer"]["loop"] |= {"steps": 2, "decay": 1, "threads": 1}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    for name in ("straight", "broken"):
        run_stage("tokenizer", path, tmp_path / name)
    straight = run_stage("upsampler", path, tmp_path / "straight")

    class Stopped(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResamplerTask, "after_step", lambda _, step: stop() if step == 4 else None)
        with pytest.raises(Stopped):
            run_stage("upsampler", path, tmp_path / "broken")
    resumed = run_stage("upsampler", path, tmp_path / "broken")
    assert all(torch.equal(straight[k], resumed[k]) for k in straight)
    fresh = averaged(tmp_path / "broken", "tokenizer")
    assert all(torch.equal(v, averaged(tmp_path / "straight", "tokenizer")[k]) for k, v in fresh.items())


def test_the_rate_rises_stays_and_falls() -> None:
    loop = LoopConfig(steps=100, warmup=10, decay=20)
    rates = [loop.rate(i) for i in range(100)]
    assert rates[0] == 0.1 and rates[9] == 1.0 and rates[80] == 1.0 and rates[90] == 0.5 and rates[99] == 0.05
    assert max(rates) == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"kind": "video"}}, "scenes"),
        ({"family": None}, None),
    ],
)
def test_a_wrong_training_file_says_what_is_wrong(
    tmp_path: Path, change: dict[str, object], message: str | None
) -> None:
    values = yaml.safe_load(SMOKE.read_text()) | change
    if message is None:
        del values["family"]
        message = "family"
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(ValueError, match=message):
        TrainingFile.load(path)


def test_the_caption_stage_asks_for_raster_order() -> None:
    scene = Scene(("cat", "car"), ((0, 4), (0, 1)), "white", "pair", "right of", "a cat right of a car on a white ...")
    assert raster_order(scene) == ["car", "cat"]
    config = TrainingFile.load(SMOKE)
    task = TASKS["captions"](config, Path("unused"))
    assert isinstance(task, CaptionsTask)
    objects = list(config.scenes().objects)
    truth = task.truth(scene)
    assert truth[:3] == [objects.index("car"), objects.index("cat"), len(objects)]
    assert truth[3] == list(config.scenes().backgrounds).index("white")
    other = Scene(("car", "cat"), ((0, 1), (0, 4)), "white", "pair", "left of", "")
    assert task.truth(other)[:4] == truth[:4] and task.truth(other)[4] != truth[4]


def test_the_ar_stage_goes_on_from_the_caption_stage(tmp_path: Path) -> None:
    run_stage("tokenizer", SMOKE, tmp_path, steps=1)
    learnt = run_stage("captions", SMOKE, tmp_path, steps=2)
    task = TASKS["ar"](TrainingFile.load(SMOKE), tmp_path)
    assert isinstance(task, ARTask)
    for name, value in task.conditioner.weights["text"].state_dict().items():
        assert torch.equal(value, learnt[f"text.{name}"])


def test_stages_ask_for_what_they_need(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train tokenizer"):
        run_stage("ar", SMOKE, tmp_path)
    with pytest.raises(ValueError, match="tokenizer, captions, ar"):
        run_stage("vae", SMOKE, tmp_path)
    with pytest.raises(ValueError, match=r"emoji\.yaml"):
        run_stage("ar", tmp_path / "none.yaml", tmp_path)
    with pytest.raises(ValueError, match=r"ar\.pt"):
        averaged(tmp_path, "ar")


def test_captions_of_every_scene_are_known_to_the_vocabulary() -> None:
    config = TrainingFile.load(CONFIGS / "emoji.yaml")
    vocabulary, source = config.vocabulary(), config.source()
    rng = np.random.default_rng(0)
    for _ in range(300):
        caption, (small, large) = source.captioned(rng, (64, 128))
        ids, unknown = vocabulary.parse(caption)
        assert ids and not unknown
        assert len(ids) + 1 <= 12
        # Aligned at every size: the small picture is the area average of the large one.
        reduced = large.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
        assert np.abs(reduced - small).max() <= 1.5


def test_relations_survive_the_filler_words() -> None:
    vocabulary = TrainingFile.load(CONFIGS / "emoji.yaml").vocabulary()
    assert vocabulary.parse("a cat to the left of a dog") == vocabulary.parse("cat left of dog")
    left, right = vocabulary.parse("a cat left of a dog")[0], vocabulary.parse("a cat right of a dog")[0]
    assert left != right and left[0] == right[0]


def test_a_folder_of_images_is_a_source(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i, colour in enumerate([(255, 0, 0), (0, 255, 0)] * 20):
        Image.new("RGB", (40, 32), colour).save(tmp_path / f"a_{'red' if i % 2 == 0 else 'green'}_wall-{i}.png")
    (tmp_path / "a_red_wall-0.txt").write_text("crimson")
    source = FolderSource(tmp_path)
    caption, (small, large) = source.captioned(rng, (8, 16))
    assert (
        caption in ("a red wall", "a green wall", "crimson") and small.shape == (8, 8, 3) and large.shape == (16, 16, 3)
    )
    assert FolderSource.caption(tmp_path / "a_red_wall-0.png") == "crimson"
    held = FolderSource(tmp_path, held_out=True, share=0.3)
    assert not set(held.paths) & set(FolderSource(tmp_path, share=0.3).paths)
    with pytest.raises(ValueError, match="not a folder"):
        FolderSource(tmp_path / "none")


def test_a_pool_encodes_each_picture_once(monkeypatch: pytest.MonkeyPatch) -> None:
    family = random_family(grids=(4, 8))
    source = TrainingFile.load(SMOKE).source()
    encoded = []
    encode = family.tokenizer.encode
    monkeypatch.setattr(family.tokenizer, "encode", lambda x: encoded.append(len(x)) or encode(x))
    cpu = torch.device("cpu")
    pool = TokenPool(source, family.tokenizer, 3)
    drawn = [pool.draw(np.random.default_rng(i), (4, 8), 5, cpu) for i in range(6)]
    assert {n for d in drawn for n in d.numbers} == {0, 1, 2} and sum(encoded) == 2 * 3
    for d in drawn:
        for grid in (4, 8):
            again = pool.pictures(d, grid, cpu)
            assert torch.equal(encode(again).flatten(1), d.tokens[grid])
    assert (
        len(
            {
                d
                for i in range(4)
                for d in TokenPool(source, family.tokenizer).draw(np.random.default_rng(i), (4,), 4, cpu).numbers
            }
        )
        == 16
    )
    other = TokenPool(source, family.tokenizer, 3).draw(np.random.default_rng(0), (4, 8), 5, cpu)
    assert other.captions == drawn[0].captions and torch.equal(other.tokens[8], drawn[0].tokens[8])
    with pytest.raises(ValueError, match="pool"):
        TokenPool(source, family.tokenizer, -1)


def test_training_leaves_the_processor_as_it_was(tmp_path: Path) -> None:
    def flushed() -> bool:
        return not torch.tensor([1e-310], dtype=torch.float64).mul(0.5).any()

    threads = torch.get_num_threads()
    assert not flushed()
    with processor(threads + 1):
        assert flushed() and torch.get_num_threads() == threads + 1
        with processor(threads):
            pass
        assert flushed() and torch.get_num_threads() == threads + 1
    assert not flushed() and torch.get_num_threads() == threads
