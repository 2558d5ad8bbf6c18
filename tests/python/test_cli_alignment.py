"""The commands that align a family and measure what its target accepts, from one end to the other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import Result

from mulosd.data.scenes import is_held_out

Run = Callable[..., Result]


@pytest.mark.parametrize("command", ["align-upsampler", "distill"])
def test_a_family_is_aligned_calibrated_and_measured(run: Run, family: Path, command: str) -> None:
    Path("prompts.txt").write_text("red apple\na pear on blue\n")
    prompts = ("--prompts-file", "prompts.txt")
    size = ("--steps", 2, "--batch", 2, "--pool", 4, "--scale", 2)
    made = run("train", command, "--family", family, "--run", "run", "--output", "aligned", *prompts, *size)
    assert made.exit_code == 0, made.output
    assert "mulosd calibrate --family aligned" in made.stdout
    assert set(json.loads(Path("aligned/family.json").read_text())["calibration"]) == {"4-latent"}
    found = run("calibrate", "--family", "aligned", "--decoder", "mulo:scale=2:pool=3", *prompts)
    assert found.exit_code == 0, found.output
    mulo = ("--decoder", "mulo:scale=2")
    found = run("bench", "acceptance", "--family", "aligned", *mulo, *prompts, "--json", "found.json")
    assert found.exit_code == 0, found.output
    report = json.loads(Path("found.json").read_text())
    assert [row["source"] for row in report["rows"]] == ["own", "draft"] and report["pool"] == 3
    assert "draft" in found.stdout and "rejected" in found.stdout


def test_real_pictures_come_from_a_training_file(run: Run, family: Path) -> None:
    names = [n for n in (f"red_apple-{i}.png" for i in range(400)) if is_held_out(n, 0.05)][:2]
    for name in (*names, "unknown-1.png", "unknown-2.png"):
        Image.new("RGB", (16, 16), (200, 30, 30)).save(name)
    assert not is_held_out("unknown-1.png", 0.05)
    Path("photo.yaml").write_text("family: x\ndata: {kind: folder, path: .}\n")
    Path("prompts.txt").write_text("red apple\na pear on blue\n")
    asked = ("bench", "acceptance", "--family", family, "--decoder", "mulo:scale=2:tau=0.02:pool=1:draft_window=1")
    found = run(*asked, "--prompts-file", "prompts.txt", "--config", "photo.yaml", "--json", "found.json")
    assert found.exit_code == 0, found.output
    report = json.loads(Path("found.json").read_text())
    assert [row["source"] for row in report["rows"]] == ["own", "real", "real up-sampled", "draft"]
    assert (report["pictures"], report["draft_window"]) == (2, 1)
