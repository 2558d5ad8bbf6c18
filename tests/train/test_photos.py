"""A class-conditional family of photographs, on an archive of forty small pictures of three classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from mulosd import DraftOnly, Engine, Jacobi, MuloSD, Serial, ZipAR
from mulosd.cli import app
from mulosd.data.photos import Photos
from mulosd.engine.conditioning import ClassConditioner
from mulosd.engine.family import Family
from mulosd.measure.photos import PhotoJudge
from mulosd.measure.readers.classes import ClassReader
from mulosd.train import classifier
from mulosd.train.ar import ARTask, dropped_condition
from mulosd.train.config import TrainingFile
from mulosd.train.export import export
from mulosd.train.preview import preview
from mulosd.train.sources import Augmentation, PhotoSource
from mulosd.train.stages import TASKS, run_stage
from mulosd.train.tokenizer import TokenizerTask


def changed(path: Path, **changes: Any) -> Path:
    """A training file with other entries: `ar__loop={...}` merges into values["ar"]["loop"]; None removes."""
    values = yaml.safe_load(path.read_text())
    for name, change in changes.items():
        *above, last = name.split("__")
        at = values
        for key in above:
            at = at[key]
        if change is None:
            del at[last]
        else:
            at[last] = {**at.get(last, {}), **change} if isinstance(change, dict) else change
    other = path.with_name(f"changed-{len(list(path.parent.iterdir()))}.yaml")
    other.write_text(yaml.safe_dump(values, sort_keys=False))
    return other


def test_the_split_goes_by_picture_and_classes_by_name(archive: Path) -> None:
    photos = Photos.load(archive, {"flower_green": "green"})
    assert photos.names == ("big red", "blue", "green")
    assert np.bincount(photos.classes).tolist() == [21, 20, 40]
    train, held_out = photos.split(False, 0.25), photos.split(True, 0.25)
    assert sorted([*train, *held_out]) == list(range(81)) and 10 <= len(held_out) <= 31  # 20 expected, sigma 4
    assert (0 in held_out) == (80 in held_out)  # copies of a picture do not cross over
    assert set(held_out) <= set(photos.split(True, 0.5))  # a larger share keeps what was held out
    assert len(photos.split(True, 0.0)) == 0
    with pytest.raises(ValueError, match="none is held out"):
        PhotoSource(photos, True, 0.0)
    with pytest.raises(ValueError, match="'purple'"):
        Photos.load(archive, {"purple": "violet"})
    with pytest.raises(ValueError, match="several classes are called green"):
        Photos.load(archive, {"flower_green": "green, greens"})
    np.savez(broken := archive.with_name("broken.npz"), data=photos.data)
    with pytest.raises(ValueError, match="offs"):
        Photos.load(broken)
    (text := archive.with_name("text.npz")).write_text("photos")
    with pytest.raises(ValueError, match=r"text\.npz is 6 bytes long; an archive of photos \(\.npz\) is wanted"):
        Photos.load(text)


def test_sizes_are_aligned_and_only_training_pictures_change(archive: Path) -> None:
    photos = Photos.load(archive)
    strong = Augmentation(flip=0.5, area=0.5, aspect=1.3, colour=0.2)
    originals = {p.tobytes() for p in (photos.picture(i, 32) for i in range(len(photos)))}
    for held_out in (False, True):
        source = PhotoSource(photos, held_out, 0.3, strong)
        drawn = [source.captioned(np.random.default_rng(i), (8, 32)) for i in range(40)]
        for caption, (small, large) in drawn:
            assert caption in photos.names
            assert np.abs(large.reshape(8, 4, 8, 4, 3).mean(axis=(1, 3)) - small).max() <= 1  # two passes, each rounded
        kept = [large.tobytes() in originals for _, (_, large) in drawn]
        assert all(kept) if held_out else not any(kept)
    flipped = PhotoSource(photos, augmentation=Augmentation(flip=1.0))
    mirrored = {photos.picture(i, 32)[:, ::-1].tobytes() for i in range(len(photos))}
    assert all(flipped.image(np.random.default_rng(i), 32, 32).tobytes() in mirrored for i in range(5))
    with pytest.raises(ValueError, match="area"):
        Augmentation(area=0.0)


def test_a_family_of_classes_is_trained_exported_and_generates(
    config: Path, tmp_path: Path, averages: Callable[..., Any]
) -> None:
    run = tmp_path / "run"
    for stage in ("tokenizer", "ar", "upsampler", "classifier"):
        run_stage(stage, config, run)
    log = [json.loads(line) for line in (run / "ar.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log if "held_out_nll8" in row] == [2, 4]
    folder = export(config, run, tmp_path / "family")
    family = Family.load(folder)
    assert isinstance(family.conditioner, ClassConditioner) and family.conditioner.names == ["big red", "blue", "green"]
    # The exported weights draw what the trained ones do: ids of each class and of none give their own logits.
    task = TASKS["ar"](config_of(config, run), run)
    assert isinstance(task, ARTask)
    task.module.load_state_dict(torch.load(run / "ar.pt", weights_only=True)["best"]["ema"])
    tokens = torch.randint(16, (4, 16), generator=torch.Generator().manual_seed(0))[:1].expand(4, -1)
    cond = torch.cat([family.features(["0", "blue", "GREEN"]), family.null_features(1)])
    assert cond.flatten().tolist() == [0, 1, 2, 3]
    logits = family.ar(cond, tokens, 4)
    torch.testing.assert_close(logits, task.ar(cond, tokens, 4), atol=2e-2, rtol=0)
    assert (logits[0] - logits[1]).abs().max() > 1e-4 and (logits[2] - logits[3]).abs().max() > 1e-4

    engine = Engine.from_pretrained(folder)
    serial = engine.generate("blue", decoder=Serial(), seed=1, num_images=2)
    assert serial.images[0].size == (32, 32) and not torch.equal(serial.tokens[0], serial.tokens[1])
    exact = [ZipAR(window=8), Jacobi(), MuloSD(tau=2.0, radius=0, pool=1)]
    for decoder in exact:
        assert torch.equal(engine.generate("blue", decoder=decoder, seed=1, num_images=2).tokens, serial.tokens)
    assert engine.generate(["2", "big red"], decoder=DraftOnly(), seed=0).tokens.shape == (2, 8, 8)
    with pytest.raises(ValueError, match=r"'gren' is none.*such as green"):
        engine.generate("gren")

    shown = preview(config, run, tmp_path / "preview.png", count=3)
    assert 5 < shown < 40 and Image.open(tmp_path / "preview.png").width == 6 * (32 + 6) + 6
    judged(engine, config, averages())
    where = ("--family", str(folder), "--config", str(config), "--run", str(run), "--images", "6")
    done = CliRunner().invoke(app, ["bench", "photos", *where, "--json", str(tmp_path / "photos.json")])
    assert done.exit_code == 0 and "KID-Lite0" in done.stdout and "class accuracy" in done.stdout
    report = json.loads((tmp_path / "photos.json").read_text())
    assert report["pictures"] == report["accuracy"]["pictures"] == 6 and report["accuracy_real"]["value"] > 0.9
    assert set(report["memorisation"]) == {"features", "pixels"}
    refused = CliRunner().invoke(app, ["bench", "photos", *where[:-1], "60"])
    assert refused.exit_code == 2 and "as many as are held out" in refused.stderr

    further = changed(config, init=str(folder))
    task = TASKS["ar"](config_of(further, run), tmp_path / "further")
    torch.testing.assert_close(task.module["ar"].output.weight, family.ar.output.weight)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="other words or classes"):
        TASKS["ar"](config_of(changed(further, data__names={"blue": "navy"}), run), tmp_path / "further")


def judged(engine: Engine, config: Path, features: Callable[..., Any]) -> None:
    """Training pictures given out for generated ones are found out, held-out ones are not."""
    training = TrainingFile.load(config)
    photos = training.photos()
    everything = features(np.stack([photos.picture(i, 32) for i in range(len(photos))]))
    share = training.held_out_share
    train, held = photos.split(False, share), photos.split(True, share)
    reader = ClassReader.fit(everything[train], photos.classes[train], photos.names)
    judge = PhotoJudge(photos, everything, share, reader, features, 32)
    chosen = judge.drawn(8)
    assert len(set(chosen)) == 8 and set(chosen) <= set(held)
    copies = judge.report(photos.classes[train[:8]], judge.real(train[:8])[:, :, ::-1])
    for found in copies["memorisation"].values():  # mirror images of training pictures
        assert found["nearer"] == 1 and {j for _, j in found["nearest"]} == set(train[:8].tolist())
    honest = judge.report(photos.classes[chosen], judge.real(chosen))
    assert honest["memorisation"]["pixels"]["nearer"] <= 1 / 8 and honest["accuracy"]["value"] == 1
    assert judge.reconstruction(engine, chosen)["psnr"] < 40
    with pytest.raises(ValueError, match="are held out"):
        judge.drawn(len(held) + 1)


def config_of(path: Path, run: Path) -> TrainingFile:
    """The file as a task takes it."""
    assert run.is_dir() or not run.exists()
    return TrainingFile.load(path)


def test_stages_without_text_are_refused(config: Path, tmp_path: Path) -> None:
    run_stage("tokenizer", config, tmp_path, steps=1)
    values = {"loop": {"steps": 1}}
    for stage, message in {"captions": "no text encoder", "text": "no text encoder", "reader": "scenes"}.items():
        with pytest.raises(ValueError, match=message):
            run_stage(stage, changed(config, **{stage: values}), tmp_path)
    with pytest.raises(ValueError, match=r"ar\.classes instead of ar\.text"):
        run_stage("ar", changed(config, ar__classes=None, ar__text={"length": 4}), tmp_path)
    with pytest.raises(ValueError, match="either text"):
        run_stage("ar", changed(config, ar__text={"length": 4}), tmp_path)
    smoke = Path(__file__).parents[2] / "configs" / "smoke.yaml"
    with pytest.raises(ValueError, match="'photos'"):
        run_stage("classifier", smoke, tmp_path)


def test_dropped_conditions_are_those_of_no_class() -> None:
    conditioner = ClassConditioner(3, ["a", "b", "c"])
    dropped = torch.tensor([False, True, False])
    assert dropped_condition(conditioner, ["c", "a", "b"], dropped).tolist() == [[[2]], [[3]], [[1]]]


def test_a_folder_may_be_conditioned_on_its_captions_as_classes(config: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for i in range(60):
        name = f"{'cat' if i % 2 else 'red car'}-{i}.png"
        Image.new("RGB", (16, 16), (200, i, 0)).save(tmp_path / "pictures" / name)
    data = {"kind": "folder", "path": str(tmp_path / "pictures"), "names": {}}
    conditioner = TrainingFile.load(changed(config, data=data)).conditioner()
    assert isinstance(conditioner, ClassConditioner) and conditioner.names == ["cat", "red car"]


def test_validation_keeps_the_best_and_stops(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Losses 3, 1, 2, 4, 5 every second step: the weights of step 4 are kept, and training ends after step 8."""
    run_stage("tokenizer", config, tmp_path, steps=1)
    losses = iter([3.0, 1.0, 2.0, 4.0, 5.0])
    seen: list[torch.Tensor] = []

    def validate(task: ARTask, device: torch.device) -> dict[str, float]:
        seen.append(task.ar.output.weight.detach().clone())
        return {"loss": next(losses)}

    monkeypatch.setattr(ARTask, "validate", validate)
    path = changed(config, ar__loop={"steps": 30, "patience": 2, "save_every": 4})
    found = run_stage("ar", path, tmp_path)
    assert len(seen) == 4 and torch.equal(found["ar.output.weight"], seen[1])
    state = torch.load(tmp_path / "ar.pt", weights_only=True)
    assert state["step"] == 8 and state["best"]["step"] == 4 and state["best"]["loss"] == 1
    # Started again it neither trains nor forgets; with more patience it goes on, and still holds the best.
    assert torch.equal(run_stage("ar", path, tmp_path)["ar.output.weight"], seen[1]) and len(seen) == 4
    more = changed(config, ar__loop={"steps": 10, "patience": 4})
    assert torch.equal(run_stage("ar", more, tmp_path)["ar.output.weight"], seen[1]) and len(seen) == 5
    # Without validation the last average counts again.
    plain = changed(config, ar__loop={"steps": 10, "validate_every": 0})
    assert not torch.equal(run_stage("ar", plain, tmp_path)["ar.output.weight"], seen[1])
    with pytest.raises(ValueError, match="set validate_every"):
        run_stage("ar", changed(plain, ar__loop={"patience": 1}), tmp_path)
    with pytest.raises(ValueError, match="no held-out images"):
        run_stage("upsampler", changed(config, upsampler__loop={"validate_every": 2}), tmp_path)


def test_an_interrupted_tokenizer_goes_on_with_its_critic_and_its_best(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = changed(config, tokenizer__loop={"steps": 8, "save_every": 5, "threads": 1})
    straight = run_stage("tokenizer", path, tmp_path / "straight")
    update = TokenizerTask.after_step

    def stop(task: TokenizerTask, step: int) -> None:
        if step == 6:
            raise KeyboardInterrupt
        update(task, step)

    with monkeypatch.context() as patch:
        patch.setattr(TokenizerTask, "after_step", stop)
        with pytest.raises(KeyboardInterrupt):
            run_stage("tokenizer", path, tmp_path / "broken")
    resumed = run_stage("tokenizer", path, tmp_path / "broken")
    assert all(torch.equal(straight[k], resumed[k]) for k in straight)
    one, two = (torch.load(tmp_path / r / "tokenizer.pt", weights_only=True) for r in ("straight", "broken"))
    assert one["best"]["loss"] == two["best"]["loss"] and one["step"] == two["step"] == 8
    critic = [k for k in one["task"] if k.startswith("critic.")]
    assert len(critic) > 20 and all(torch.equal(one["task"][k], two["task"][k]) for k in critic)


def test_the_classifier_is_measured_on_what_it_never_saw(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    class MeanColour:
        def __init__(self, device: str = "cpu") -> None:
            calls.append(device)

        def __call__(self, images: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
            calls.append(len(images))  # type: ignore[arg-type]
            return images.reshape(len(images), -1, 3).mean(axis=1).astype(np.float32)

    monkeypatch.setattr(classifier, "Lite0Features", MeanColour)
    run_stage("classifier", config, tmp_path)
    reader = ClassReader.load(tmp_path / "classifier.safetensors")
    found = reader.figures["held_out"]
    assert found["value"] == 1 and found["pictures"] == len(TrainingFile.load(config).photos().split(True, 0.25))
    before = len(calls)
    run_stage("classifier", config, tmp_path)  # the features were kept
    assert calls[before:] == ["cpu"]
    photos = TrainingFile.load(config).photos()
    other = Photos(photos.data[::-1], photos.offsets, photos.classes, photos.names)
    with pytest.raises(ValueError, match="another archive"):
        classifier.photo_features(other, tmp_path / classifier.FEATURES, MeanColour())
