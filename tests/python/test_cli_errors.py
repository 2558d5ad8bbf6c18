"""A caller's mistake: one line that says what was asked and what is possible, exit code 2, nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from mulosd.engine.decoding import parse

Fails = Callable[..., str]

GENERATE = [
    # what is wrong, further arguments, what the message must hold
    ("tau", ["--decoder", "mulo:tau=-0.1"], ["tau", "-0.1", "0"]),
    ("tau is not a number", ["--decoder", "mulo:tau=nan"], ["tau", "nan"]),
    ("radius", ["--decoder", "mulo:radius=-1"], ["radius", "-1", "0"]),
    ("pool", ["--decoder", "mulo:pool=0"], ["pool", "0", "1"]),
    ("pool beyond the codebook", ["--decoder", "mulo:pool=999"], ["pool", "999", "24"]),
    ("scale", ["--decoder", "mulo:scale=3"], ["scale 3", "2 or 4"]),
    ("scale of draft-only", ["--decoder", "draft-only:scale=8"], ["scale 8", "2 or 4"]),
    ("num-images", ["--num-images", "0"], ["--num-images", "0", "1"]),
    ("rows that do not fit", ["--decoder", "mulo:rows_per_cycle=3"], ["rows_per_cycle", "3", "4"]),
    ("seed", ["--seed", "-1"], ["seed", "-1"]),
    ("temperature", ["--sampling", "temperature=-1"], ["temperature", "-1"]),
    ("top-p", ["--sampling", "top_p=0"], ["top_p", "0"]),
    ("top-k", ["--sampling", "top_k=-1"], ["top_k", "-1"]),
    ("sampling that is no number", ["--sampling", "top_k=few"], ["top_k", "int", "'few'"]),
    ("sampling that there is not", ["--sampling", "cfg=3"], ["'cfg'", "cfg_scale", "top_p"]),
    ("sampling without a value", ["--sampling", "top_k"], ["top_k", "int"]),
    ("no such decoder", ["--decoder", "magic"], ["magic", "mulo", "serial"]),
    ("several decoders", ["--decoder", "serial,mulo"], ["'serial,mulo'", "one decoder"]),
    ("setting of another decoder", ["--decoder", "serial:tau=0.1"], ["serial", "tau=0.1", "grid"]),
    ("setting that is gone", ["--decoder", "mulo:refine=1"], ["refine=1", "gone", "docs/ablations.md"]),
    ("not calibrated", ["--decoder", "mulo:upsampler=pixel"], ["not calibrated", "mulosd calibrate"]),
    ("missing parent", ["--output", "no/such/a.png"], ["--output", "no/such", "mkdir"]),
    ("missing parent of a directory", ["--output", "no/such/"], ["--output", "mkdir"]),
    ("other format", ["--output", "a.gif"], ["a.gif", "a.png", "JPEG", "WebP"]),
    ("several into one file", ["--output", "a.png", "-n", "3"], ["a.png", "3 images", "directory"]),
    ("directory in place of a file", ["--stats", "."], ["--stats", "directory"]),
    ("missing parent of the statistics", ["--stats", "no/s.json"], ["--stats", "mkdir"]),
]


@pytest.mark.parametrize(("arguments", "words"), [g[1:] for g in GENERATE], ids=[g[0] for g in GENERATE])
def test_generate(fails: Fails, family: Path, arguments: list[str], words: list[str]) -> None:
    message = fails("generate", "a red apple", "--family", family, *arguments)
    for word in words:
        assert word in message


RESPELLED = [
    # a former command line, and how it is written now
    *(
        (f"--{name.replace('_', '-')} {value}", f"--decoder mulo:{name}={value}")
        for name, value in {
            "scale": 2,
            "tau": 0.02,
            "radius": 1,
            "pool": 10,
            "upsampler": "pixel",
            "rejection": "naive",
            "rows_per_cycle": 8,
            "window": 2,
            "draft_window": 2,
            "draft_guesses": 16,
            "entropy_radius": 0.5,
            "verify_dtype": "bfloat16",
        }.items()
    ),
    ("--sr-weights net.pth", "--decoder mulo:upsampler=net.pth"),
    ("--cascade", "--decoder mulo:cascade=true"),
    ("--depth 3", "--decoder eagle:depth=3"),
    ("--tree-top-k 2", "--decoder eagle:top_k=2"),
    ("--total 9", "--decoder eagle:total=9"),
    ("--coupled", "--decoder eagle:coupled=true"),
    ("--coupled --decoder eagle", "--decoder eagle:coupled=true"),
    ("--lantern-k 64", "--decoder eagle:lantern_k=64"),
    ("--delta 0.1", "--decoder eagle:delta=0.1"),
    ("--tau=0.02 --radius 1", "--decoder mulo:tau=0.02:radius=1"),
    ("--decoder zipar --window 8", "--decoder zipar:window=8"),
    ("--window 8 --decoder=zipar", "--decoder zipar:window=8"),
    ("--decoder mulo:scale=2 --tau 0.02", "--decoder mulo:scale=2:tau=0.02"),
    ("--decoder serial --tau 0.02", "--decoder mulo:tau=0.02"),
    *(
        (f"--{name.replace('_', '-')} {value}", f"--sampling {name}={value}")
        for name, value in {"cfg_scale": 3, "temperature": 0.9, "top_k": 100, "top_p": 0.9, "cfg_interval": 4}.items()
    ),
    ("--cfg-scale 3 --top-k 100", "--sampling cfg_scale=3:top_k=100"),
]


@pytest.mark.parametrize(("former", "now"), RESPELLED, ids=[former for former, _ in RESPELLED])
def test_former_option_names_the_new_spelling(fails: Fails, family: Path, former: str, now: str) -> None:
    Path("net.pth").touch()
    message = fails("generate", "apple", "--family", family, *former.split())
    assert message.endswith(f"now part of the {now.split()[0][2:]}: {now}\n")
    what, text = now.split()
    if what == "--decoder":
        parse(text)  # there is such a decoder


@pytest.mark.parametrize("former", [["--refine", "1"], ["--entropy-tau", "1"], ["--refresh", "rows"], ["--rounds=2"]])
def test_former_option_that_is_gone(fails: Fails, family: Path, former: list[str]) -> None:
    message = fails("generate", "apple", "--family", family, *former)
    assert message.startswith(f"error: {' '.join(former).replace('=', ' ')} is gone: ")
    assert "docs/ablations.md" in message


def test_former_words_behind_two_dashes_are_prompts(run: Callable[..., Result], family: Path) -> None:
    assert run("generate", "--family", family, "--output", "a.png", "--", "--tau apple").exit_code == 0


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
    [
        (["--rejection", "0"], "--rejection"),
        (["--prompts", "0"], "--prompts"),
        (["--decoder", "mulo:radius=-1"], "radius"),
        (["--decoder", "mulo:tau=0.1"], "finds the tau"),
        (["--decoder", "mulo:cascade=true"], "leave everything else out"),
        (["--decoder", "serial"], "mulo"),
        (["--scale", "2", "--pool", "4"], "--decoder mulo:scale=2:pool=4"),
    ],
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
    result = run("--traceback", "generate", "apple", "--family", family, "--decoder", "mulo:tau=-1")
    assert result.exit_code == 1
    assert isinstance(result.exception, ValueError)


def subprocess_error(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "mulosd", *arguments], capture_output=True, text=True, env=os.environ)


def test_process_exit_code(tmp_path: Path) -> None:
    result = subprocess_error("generate", " ", "--output", str(tmp_path / "a.png"))
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: the prompt is empty")
    assert list(tmp_path.iterdir()) == []
