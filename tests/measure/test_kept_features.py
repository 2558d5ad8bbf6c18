"""A family of photos compared with features of photos that are not there: the file, the search for it, the reports."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from mulosd.engine.engine import Engine
from mulosd.engine.family import Family
from mulosd.engine.random_family import random_family
from mulosd.measure import judge as judge_module
from mulosd.measure import kept_features
from mulosd.measure.decode import bench_decode
from mulosd.measure.evaluate import evaluate
from mulosd.measure.images import ImageSet
from mulosd.measure.judge import Judge
from mulosd.measure.kept_features import KeptFeatures, bundled, describe
from mulosd.measure.metrics.kid import kid, kid_estimate
from mulosd.measure.prompts import default_prompts, held_out_classes, shown_prompts
from mulosd.measure.readers.classes import ClassReader
from mulosd.measure.references import builtin_reference

NAMES = ("sunflower, sunflowers", "cougar face", "pagoda")
COUNTS = (60, 30, 10)
WIDTH = 48
ARCHIVE = "d91def2a2eb0"


class CheapFeatures:
    """Pixels in place of a network."""

    def __init__(self, device: str = "cpu") -> None:
        pass

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return images[:, ::4, ::4].reshape(len(images), -1).astype(np.float32) / 255


def clouds(classes: np.ndarray, seed: int) -> np.ndarray:
    """Features around the centre of each class."""
    centres = np.random.default_rng(0).uniform(0.2, 0.8, (len(NAMES), WIDTH))
    noise = np.random.default_rng(seed).uniform(-0.1, 0.1, (len(classes), WIDTH))
    return (centres[classes] + noise).astype(np.float32)


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A random family of three classes, with its reader and with features of 20 + 20 photos that match no package's."""
    monkeypatch.setattr(judge_module, "Lite0Features", CheapFeatures)
    made = random_family(classes=NAMES)
    split = {"digest": "ab" * 32, "held_out": 0.1, "size": 16, "counts": list(COUNTS)}
    made.config = replace(made.config, facts={"photos": split})
    folder = made.save(tmp_path / "family")
    classes = np.arange(40) % 3
    ClassReader.fit(clouds(classes, 1), classes, NAMES).save(folder / "classifier.safetensors")
    other = np.arange(20) % 3
    kept = KeptFeatures(
        describe(Family.load(folder)),
        clouds(np.arange(20) % 3, 2),
        clouds(other, 3),
        clouds(other, 3) + 0.2,
        tuple(NAMES[c].split(",")[0] for c in other),
    )
    kept.save(folder / kept_features.FILE)
    return folder


def test_a_stored_feature_is_within_half_a_step(family: Path, tmp_path: Path) -> None:
    kept = KeptFeatures.load(family / "reference.npz")
    real = np.random.default_rng(0).gamma(0.3, size=(20, WIDTH)).astype(np.float32) * np.logspace(-3, 3, 20)[:, None]
    real[7] = 0  # a picture without features is stored as that
    replace(kept, real=real).save(tmp_path / "kept.npz")
    found = KeptFeatures.load(tmp_path / "kept.npz")
    assert (np.abs(found.real - real) <= 0.5001 / 255 * real.max(axis=1, keepdims=True)).all() and not found.real[
        7
    ].any()
    np.testing.assert_allclose(found.rebuilt, kept.rebuilt, atol=1.2 / 255)
    assert (found.about, found.classes) == (kept.about, kept.classes)
    with pytest.raises(ValueError, match="0 or more"):
        replace(kept, real=-real).save(tmp_path / "negative.npz")
    assert not list(tmp_path.glob("*negative*"))
    for name, content in (("text.npz", "photos"), ("array.npz", None)):
        (tmp_path / name).write_text(content) if content else np.savez(tmp_path / name, features=real)
        with pytest.raises(ValueError, match="features of photos"):
            KeptFeatures.load(tmp_path / name)


CHANGES: dict[str, Any] = {"digest": "cd" * 32, "held_out": 0.2, "size": 32}


@pytest.mark.parametrize("key", [*CHANGES, "names", "tokenizer", "network"])
def test_features_of_something_else_are_not_compared_with(
    family: Path, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Family.load(family)
    original = KeptFeatures.find(loaded)
    if key in CHANGES:
        loaded.config.facts["photos"][key] = CHANGES[key]
    elif key == "names":
        loaded.conditioner.names[1] = "cougar"  # type: ignore[attr-defined]
    elif key == "tokenizer":
        next(iter(loaded.tokenizer.state_dict().values())).view(-1)[0] += 1
    else:
        monkeypatch.setattr(kept_features, "NETWORK", "Inception")
    with pytest.raises(ValueError, match=rf"reference\.npz differs in {key}\).*mulosd train reference"):
        KeptFeatures.find(loaded)
    # A file of the package that fits is taken where the one beside the family does not.
    replace(original, about=describe(loaded), real=original.real / 2).save(tmp_path / "packaged.npz")
    monkeypatch.setattr(kept_features, "bundled", lambda digest: tmp_path / "packaged.npz")
    assert KeptFeatures.find(loaded).real.max() < 0.6 * original.real.max()


def test_a_family_without_features_is_told_how_to_make_them(family: Path) -> None:
    (family / "reference.npz").unlink()
    judge = Judge(Engine.from_pretrained(family), real_scenes=4)
    assert judge.grader is not None and judge.kid(judge.see(np.zeros((4, 16, 16, 3), np.uint8))) is None
    assert len(judge.notes) == 1 and "kid is null" in judge.notes[0] and "mulosd train reference" in judge.notes[0]


def test_the_reference_is_the_first_of_those_kept(family: Path) -> None:
    loaded = Family.load(family)
    kept = KeptFeatures.find(loaded)
    some, all_of_them = builtin_reference(loaded, 5, seed=1), builtin_reference(loaded, 256, seed=2)
    assert some.rebuilt is not None and some.note is None and some.prompts == list(kept.classes[:5])
    for found, whole in ((some.real, kept.real), (some.other, kept.other), (some.rebuilt, kept.rebuilt)):
        assert found.images is None and np.array_equal(found.features, whole[:5])
    assert len(all_of_them.real) == 20 and all_of_them.note is not None and "256 real images" in all_of_them.note
    with pytest.raises(ValueError, match="only features are kept"):
        _ = some.real.shown


def test_reports_have_every_measure_without_a_photo(family: Path, tmp_path: Path) -> None:
    engine = Engine.from_pretrained(family)
    prompts = default_prompts(engine, 5)
    report = evaluate(engine, prompts, ["serial", "draft-only:scale=2"], tmp_path / "out", real=12).report
    kept = KeptFeatures.find(engine.family)
    found = report["reference"]
    assert found["real"] == 12 and found["name"].startswith("12 held-out photos") and found["diversity"] is not None
    # As many as were drawn; the stored features are read as pictures would be.
    assert found["perfect"]["images"] == 5 and found["perfect"]["accuracy"]["value"] == 1
    assert found["perfect"]["kid"]["value"] == pytest.approx(kid_estimate(kept.real[:12], kept.other[:5]).value)
    assert found["reconstruction"]["kid"]["value"] == pytest.approx(kid(kept.real[:12], kept.rebuilt[:5])["value"])
    for row in report["rows"]:
        images = np.stack([engine.generate(p, decoder=spec(row), seed=i).images[0] for i, p in enumerate(prompts)])
        features = CheapFeatures()(images)
        assert row["kid"]["value"] == pytest.approx(kid(kept.real[:12], features)["value"])
        right = ClassReader.load(family / "classifier.safetensors").accuracy_of(prompts, features)
        assert row["accuracy"]["value"] == right["value"]
        assert (row["frechet"]["real"], row["frechet"]["made"]) == (12, 5)
    assert not [note for note in report["notes"] if "null" in note]

    bench = bench_decode(engine, prompts, ["serial"], real_scenes=64)
    assert bench["real_scenes"] == 20 and "64 real images were asked for" in " ".join(bench["notes"])
    assert bench["kid_real"]["value"] == pytest.approx(kid(kept.real, kept.other)["value"])
    assert (
        bench["reader"]["accuracy_real"] == 1 and bench["reconstruction"]["kid"]["value"] > bench["kid_real"]["value"]
    )
    assert bench["rows"][0]["kid"] is not None and bench["rows"][0]["accuracy"] is not None


def spec(row: dict[str, Any]) -> Any:
    from mulosd.engine.decoding.spec import parse

    return parse(row["spec"])


def test_without_the_network_everything_that_needs_it_is_null(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    judge = Judge(Engine.from_pretrained(family), real_scenes=4)
    assert len(judge.notes) == 1 and judge.notes[0].startswith("accuracy and kid are null: Lite0 features")
    seen = judge.see(np.zeros((4, 16, 16, 3), np.uint8))
    assert judge.scores(["0"] * 4, seen) is judge.kid(seen) is None and judge.distances(seen) == {}


def test_prompts_follow_the_frequencies_of_held_out_photos(family: Path) -> None:
    engine = Engine.from_pretrained(family)
    names = [name.split(",")[0] for name in NAMES]
    drawn = default_prompts(engine, 2000, seed=3)
    counts = [drawn.count(name) for name in names]
    # Equal frequencies would give p < 1e-200, those of the square roots of the counts 1e-49.
    assert sum(counts) == 2000 and chisquare(counts, 20 * np.asarray(COUNTS)).pvalue > 1e-3
    assert drawn[:50] == default_prompts(engine, 50, seed=3) != default_prompts(engine, 50, seed=4)
    assert sorted(shown_prompts(engine, 16)) == ["0", "1", "2"], "to look at: each class once"
    with pytest.raises(ValueError, match="at least 1"):
        held_out_classes(engine, 0)
    engine.family.config.facts["photos"]["counts"] = [0, 0, 0]
    with pytest.raises(ValueError, match="holds out no photos"):
        default_prompts(engine, 4)
    engine.family.config.facts["photos"]["counts"] = [1, 2]
    with pytest.raises(ValueError, match="2 classes"):
        default_prompts(engine, 4)
    del engine.family.config.facts["photos"]
    assert default_prompts(engine, 2) == ["0", "1"] and sorted(default_prompts(engine, 7)) == list("0001122")
    with pytest.raises(ValueError, match="does not say which photos"):
        held_out_classes(engine, 4)


def test_a_set_of_pictures_is_of_one_number() -> None:
    images, features = np.zeros((3, 4, 4, 3), np.uint8), np.zeros((3, 5), np.float32)
    both = ImageSet(images, features)
    first = both.first(2)
    assert len(both) == 3 and len(first) == len(first.shown) == 2 and first.features is not None
    assert len(first.features) == 2 and len(both.first(9)) == 3
    with pytest.raises(ValueError, match="as many of both"):
        ImageSet(images, features[:2])
    with pytest.raises(ValueError, match="needs images, or features"):
        ImageSet()


def test_the_packaged_features_are_real_and_apart() -> None:
    path = bundled(ARCHIVE)
    assert path.stat().st_size < 0.6 * 2**20
    kept = KeptFeatures.load(path)
    assert kept.about["digest"].startswith(ARCHIVE) and kept.about["size"] == 128
    assert kept.real.shape == kept.other.shape == kept.rebuilt.shape == (256, 1280)
    names = {name.split(",")[0] for name in kept.about["names"]}
    assert len(names) == 103 and set(kept.classes) <= names
    # Two samples of one population, -0.5 with an error of 0.8, and what the tokenizer changes, 9.9 with one of 1.7.
    zero, rebuilt = kid_estimate(kept.real, kept.other), kid_estimate(kept.real, kept.rebuilt)
    assert abs(zero.value) < 4 * zero.std and 1 < rebuilt.value < 15
    # A photo that is in both halves would have a cosine above 0.9999; the nearest of different ones have 0.92.
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (kept.real, kept.other)]
    assert (unit[0] @ unit[1].T).max() < 0.999
