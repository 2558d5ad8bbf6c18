"""Features of held-out photos: which photos they are of, where they go, and who may compare with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from mulosd.cli import app
from mulosd.engine.engine import Engine
from mulosd.engine.family import Family
from mulosd.measure import kept_features
from mulosd.measure.images import reconstruct
from mulosd.measure.kept_features import KeptFeatures
from mulosd.train import reference
from mulosd.train.config import TrainingFile
from mulosd.train.export import export
from mulosd.train.reference import add_features, keep_features
from mulosd.train.stages import run_stage

STAGES = ("tokenizer", "ar", "upsampler", "classifier")


def test_export_keeps_features_of_held_out_photos(
    config: Path, tmp_path: Path, averages: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    for stage in STAGES:
        run_stage(stage, config, run, steps=1)
    folder = export(config, run, tmp_path / "family")
    photos = TrainingFile.load(config).photos()
    held = photos.split(True, 0.25)
    described = json.loads((folder / "family.json").read_text())["photos"]
    assert described["digest"] == photos.digest().hex() and described["size"] == 32 and described["held_out"] == 0.25
    assert described["counts"] == np.bincount(photos.classes[held], minlength=3).tolist()

    # Every kept row is the nearest to one held-out photo, and no photo is in both halves.
    kept, n = KeptFeatures.find(family := Family.load(folder)), len(held) // 2
    assert len(kept.real) == len(kept.other) == len(kept.rebuilt) == n
    truth = averages()(np.stack([photos.picture(int(i), 32) for i in held]))
    rows = np.concatenate([kept.real, kept.other])
    chosen = np.abs(rows[:, None] - truth[None]).max(axis=2).argmin(axis=1)
    step = truth[chosen].max(axis=1, keepdims=True) / 255
    assert (np.abs(rows - truth[chosen]) <= 0.5001 * step).all() and len(set(chosen)) == 2 * n
    names = [photos.names[photos.classes[held[i]]] for i in chosen[n:]]
    assert list(kept.classes) == names and len(set(names)) > 1
    pictures = np.stack([photos.picture(int(held[i]), 32) for i in chosen[n:]])
    rebuilt = averages()(reconstruct(Engine(family), pictures))
    assert (np.abs(kept.rebuilt - rebuilt) <= 0.5001 * rebuilt.max(axis=1, keepdims=True) / 255).all()
    assert np.abs(kept.rebuilt - kept.other).max() > 3 * step.max()

    # The command makes the same file; a larger wish than there are photos takes half of those.
    call = ["train", "reference", "--config", str(config), "--family", str(folder)]
    done = CliRunner().invoke(app, [*call, "--count", "999", "--output", str(tmp_path / "other.npz")])
    assert done.exit_code == 0 and f"twice {n} held-out" in " ".join(done.stdout.split())
    assert (tmp_path / "other.npz").read_bytes() == (folder / "reference.npz").read_bytes()
    assert CliRunner().invoke(app, [*call, "--count", "5"]).exit_code == 0
    fewer = KeptFeatures.find(family)
    assert len(fewer.real) == 5 and np.array_equal(fewer.real, kept.real[:5])
    for wrong in (["--count", "3"], ["--family", str(tmp_path)], ["--output", str(tmp_path / "no" / "x.npz")]):
        refused = CliRunner().invoke(app, [*call, *wrong])
        assert refused.exit_code == 2 and refused.stderr.startswith("error: ")

    # What the package holds is not written again, unless it is another tokenizer's.
    monkeypatch.setattr(reference, "bundled", lambda digest: tmp_path / f"{digest}.npz")
    monkeypatch.setattr(kept_features, "bundled", reference.bundled)
    shutil.move(folder / "reference.npz", packaged := tmp_path / f"{described['digest']}.npz")
    add_features(photos, folder)
    assert not (folder / "reference.npz").exists() and len(KeptFeatures.find(family).real) == 5
    KeptFeatures({**fewer.about, "tokenizer": "?"}, fewer.real, fewer.other, fewer.rebuilt, fewer.classes).save(
        packaged
    )
    add_features(photos, folder)
    assert len(KeptFeatures.find(family).real) == n

    renamed = yaml.safe_load(config.read_text())
    renamed["data"]["names"]["blue"] = "navy"
    config.write_text(yaml.safe_dump(renamed))
    with pytest.raises(ValueError, match="not trained on this archive"):
        keep_features(TrainingFile.load(config).photos(), family)
    family.config.facts["photos"]["held_out"] = 0.01
    with pytest.raises(ValueError, match="not trained on this archive"):
        keep_features(photos, family)
    family.config.facts["photos"]["counts"] = np.bincount(
        photos.classes[few := photos.split(True, 0.01)], minlength=3
    ).tolist()
    with pytest.raises(ValueError, match=f"{len(few)} are held out"):
        keep_features(photos, family)
