"""A caller's mistake: one line that says what was asked and what is possible, exit code 2, nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Fails = Callable[..., str]

GENERATE = [
    # what is wrong, further arguments, what the message must hold
    ("tau", ["--tau", "-0.1"], ["tau", "-0.1", "0"]),
    ("tau is not a number", ["--tau", "nan"], ["tau", "nan"]),
    ("radius", ["--radius", "-1"], ["radius", "-1", "0"]),
    ("pool", ["--pool", "0"], ["pool", "0", "1"]),
    ("pool beyond the codebook", ["--pool", "999"], ["pool", "999", "24"]),
    ("scale", ["--scale", "3"], ["scale 3", "2 or 4"]),
    ("scale of draft-only", ["--scale", "8", "--decoder", "draft-only"], ["scale 8", "2 or 4"]),
    ("num-images", ["--num-images", "0"], ["--num-images", "0", "1"]),
    ("rows that do not fit", ["--rows-per-cycle", "3"], ["rows_per_cycle", "3", "4"]),
    ("seed", ["--seed", "-1"], ["seed", "-1"]),
    ("temperature", ["--temperature", "-1"], ["temperature", "-1"]),
    ("top-p", ["--top-p", "0"], ["top_p", "0"]),
    ("top-k", ["--top-k", "-1"], ["top_k", "-1"]),
    ("option of another decoder", ["--tau", "0.1", "--decoder", "serial"], ["--tau", "serial", "mulo"]),
    ("refine without a latent up-sampler", ["--refine", "1", "--upsampler", "pixel"], ["refine", "latent", "'pixel'"]),
    ("refine", ["--refine", "-1"], ["refine", "0", "-1"]),
    ("refine of draft-only", ["--refine", "1", "--decoder", "draft-only"], ["--refine", "draft-only", "mulo"]),
    ("not calibrated", ["--upsampler", "pixel"], ["not calibrated", "mulosd calibrate"]),
    ("missing parent", ["--output", "no/such/a.png"], ["--output", "no/such", "mkdir"]),
    ("missing parent of a directory", ["--output", "no/such/"], ["--output", "mkdir"]),
    ("other format", ["--output", "a.jpg"], ["a.jpg", "a.png"]),
    ("several into one file", ["--output", "a.png", "-n", "3"], ["a.png", "3 pictures", "directory"]),
    ("directory in place of a file", ["--stats", "."], ["--stats", "directory"]),
    ("missing parent of the statistics", ["--stats", "no/s.json"], ["--stats", "mkdir"]),
]


@pytest.mark.parametrize(("arguments", "words"), [g[1:] for g in GENERATE], ids=[g[0] for g in GENERATE])
def test_generate(fails: Fails, family: Path, arguments: list[str], words: list[str]) -> None:
    message = fails("generate", "a red apple", "--family", family, *arguments)
    for word in words:
        assert word in message


@pytest.mark.parametrize("prompts", [[""], ["  \n "], ["a red apple", " "], ["and on a"]])
def test_empty_prompt(fails: Fails, family: Path, prompts: list[str]) -> None:
    assert "prompt" in fails("generate", *prompts, "--family", family)


def test_no_prompt(run: Callable[..., Result]) -> None:
    result = run("generate")
    assert result.exit_code == 2
    assert "PROMPT" in result.stderr


@pytest.mark.parametrize("command", [["generate", "apple", "--family"], ["info"], ["calibrate", "--family"]])
def test_unknown_family(fails: Fails, command: list[str]) -> None:
    message = fails(*command, "no-such-family")
    assert "no-such-family" in message
    assert "bundled families" in message


def test_damaged_family(fails: Fails, family: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in family.iterdir():
        if file.name != "ar.safetensors":
            (broken / file.name).write_bytes(file.read_bytes())
    assert "ar.safetensors" in fails("generate", "apple", "--family", broken)


def test_existing_file_in_place_of_a_directory(fails: Fails, family: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    assert "taken is a file" in fails("generate", "apple", "--family", family, "--output", "taken")


def test_device_that_is_not_there(fails: Fails, family: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert "cpu" in fails("generate", "apple", "--family", family, "--device", "cuda")


def test_impossible_backend(fails: Fails, family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULOSD_BACKEND", "abacus")
    result = subprocess_error("generate", "apple", "--family", str(family))
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert "abacus" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--decoder", "serial,magic"], "draft-only"),
        (["--decoder", ""], "draft-only"),
        (["--sweep", "mulo=0.1,high"], "--sweep"),
        (["--decoders", "serial"], "--decoder serial,mulo"),
        (["--taus=0.1"], "--sweep mulo="),
        (["--scale", "2"], "--decoder mulo:scale="),
        (["--prompts", "0"], "--prompts"),
        (["--prompts-file", "none.txt"], "none.txt"),
        (["--json", "no/b.json"], "--json"),
    ],
)
def test_bench(fails: Fails, family: Path, arguments: list[str], word: str) -> None:
    assert word in fails("bench", "decode", "--family", family, *arguments)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["--rejection", "0"], "--rejection"), (["--prompts", "0"], "--prompts"), (["--radius", "-1"], "--radius")],
)
def test_calibrate(fails: Fails, family: Path, arguments: list[str], word: str) -> None:
    assert word in fails("calibrate", "--family", family, *arguments)


def test_alignment(fails: Fails, family: Path) -> None:
    for command in ("align-upsampler", "distill"):
        here = ("train", command, "--family", family, "--run", "r", "--output", "o")
        assert "--steps" in fails(*here, "--steps", 0)
        assert "--pool" in fails(*here, "--pool", 0)
        assert "--confidence" in fails(*here, "--confidence", -1)
        assert "--images none" in fails(*here, "--images", "none")
        assert "--prompts-file" in fails(*here)  # the family takes free text
        assert "bundled families" in fails("train", command, "--family", "none", "--run", "r", "--output", "o")
        assert "exists already" in fails("train", command, "--family", family, "--run", "r", "--output", family)
    here = ("train", "align-upsampler", "--family", family, "--run", "r", "--output", "o")
    assert "--temperature" in fails(*here, "--temperature", 0)
    assert "--every" in fails(*here, "--every", -1)
    assert "--config none.yaml" in fails(*here, "--config", "none.yaml")
    assert "give one of them" in fails(*here, "--config", "none.yaml", "--images", ".")
    nothing = ("--own", 0, "--drafted", 0)
    assert "nothing to learn" in fails("train", "distill", "--family", family, "--run", "r", "--output", "o", *nothing)
    assert "--prompts" in fails("bench", "acceptance", "--family", family, "--prompts", 0)
    assert "--images none" in fails("bench", "acceptance", "--family", family, "--images", "none")
    assert "--config none.yaml" in fails("bench", "acceptance", "--family", family, "--config", "none.yaml")
    assert "free text" in fails("bench", "acceptance", "--family", family)


def test_train(fails: Fails, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("family: x\ndata: {kind: folder, path: .}\n")
    assert "--config" in fails("train", "tokenizer", "--config", "none.yaml", "--run", "r")
    assert "--steps" in fails("train", "ar", "--config", config, "--run", "r", "--steps", 0)
    assert "--run" in fails("train", "all", "--config", config, "--run", config)
    assert "--run" in fails("train", "export", "--config", config, "--run", "none", "--output", "o")
    assert "--pack" in fails("train", "sprites", "--config", config, "--pack", "none", "--output", "s.png")


def test_traceback_on_request(run: Callable[..., Result], family: Path) -> None:
    result = run("--traceback", "generate", "apple", "--family", family, "--tau", "-1")
    assert result.exit_code == 1
    assert isinstance(result.exception, ValueError)


def subprocess_error(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mulosd", *arguments], capture_output=True, text=True, env=os.environ, timeout=300
    )


def test_process_exit_code(tmp_path: Path) -> None:
    result = subprocess_error("generate", " ", "--output", str(tmp_path / "a.png"))
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: the prompt is empty")
    assert list(tmp_path.iterdir()) == []
