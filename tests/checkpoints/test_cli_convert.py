"""From released files to pictures on the command line, for both kinds of family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from mulosd.cli import app


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def fails(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 2 and result.stderr.startswith("error: "), result.output
    return result.stderr


@pytest.mark.parametrize("kind", ["class", "caption", "tar"])
def test_convert_info_calibrate_generate(
    kind: str, files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    family = tmp_path / "family"
    g = np.random.default_rng(0)
    given: tuple[object, ...] = ()
    if kind == "tar":
        sizes = [f"--ar={2 * grid}={files[f'tar_{grid}.pth']}" for grid in (4, 8)]
        run("convert", "tar", *sizes, "--ta-tok", files["ta_tok.pth"], "--vq", files["vq.pt"], "--output", family)
        np.save("given.npy", g.integers(32, size=(2, 81)))
    else:
        stem = "c2i" if kind == "class" else "t2i"
        pair = ("--drafter", files[f"{stem}_4.pt"], "--target", files[f"{stem}_8.pt"])
        run("convert", "llamagen", *pair, "--vq", files["vq.pt"], "--heads", 2, "--output", family)
        np.save("given.npy", g.standard_normal((2, 9, 2048)).astype(np.float16))
    if kind != "class":
        given = ("--features", "given.npy")

    described = json.loads(run("info", family, "--json", "--memory", "1GiB", "--dtype", "bfloat16"))
    assert described["grids"] == [4, 8] and described["scales"] == [2]
    prefix = {"class": 1, "caption": 120, "tar": 81}[kind]
    kv = {str(grid): 2 * 2 * 2 * (prefix + grid * grid) * 32 * 2 for grid in (4, 8)}
    assert described["memory"]["kv_per_request"] == kv
    held = described["memory"]
    batch = held["largest_batch"]
    assert held["weights"] + held["working"] + batch * held["request"] <= 2**30
    assert held["weights"] + held["working"] + (batch + 1) * held["request"] > 2**30
    assert f"{batch} in 1.0 GiB" in run("info", family, "--memory", "1GiB", "--dtype", "bfloat16")

    calibrated = run(
        "calibrate", "--family", family, "--decoder", "mulo:pool=3", "--rejection", 0.2, "--prompts", 2, *given
    )
    assert "pixel up-sampler" in calibrated
    prompts = ("3", "7") if kind == "class" else ("a macaw", "a cat")
    mulo = ("generate", *prompts, "--family", family, "--output", "out", *given)
    assert "has no scale 4" in fails(*mulo, "--decoder", "mulo:scale=4")
    run(*mulo, "--decoder", "mulo:scale=2", "--stats", "s.json")
    stats = json.loads(Path("s.json").read_text())["images"]
    assert [s["settings"]["upsampler"] for s in stats] == ["pixel"] * 2
    assert f"cfg_scale={ {'class': 4.0, 'caption': 7.5, 'tar': 4.0}[kind] }" in stats[0]["sampling"]
    assert len(list(Path("out").glob("*.png"))) == 2
    with Image.open(stats[0]["file"]) as image:
        assert image.size == (16, 16)
    serial = ("generate", prompts[0], prompts[1], "--family", family, "--decoder", "serial")
    run(*serial, "--sampling", "cfg_interval=9", "--output", "serial", *given)
    if kind == "class":
        assert "is none: give a number from 0 to 9" in fails("generate", "a macaw", "--family", family)
        assert "takes no precomputed features" in fails(*serial, "--features", "given.npy")
    else:
        assert "conditions of 2 prompts, 1 were given" in fails("generate", "a macaw", "--family", family, *given)
        np.save("wrong.npy", np.zeros((2, 3, 4), np.float32))
        assert "error" in fails(*serial, "--features", "wrong.npy")
        Path("bad.npy").write_text("x")
        assert "an array of numbers" in fails(*serial, "--features", "bad.npy")


def test_memory_is_told_with_a_unit(files: Any) -> None:
    assert "write a number with a unit" in fails("info", "emoji", "--memory", "lots")
