"""The other commands, and what `--help` promises."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
from typer.testing import Result

import mulosd
from mulosd.engine.decoding.spec import DECODERS, parse

Run = Callable[..., Result]

COMMANDS = [
    ["generate"],
    ["info"],
    ["calibrate"],
    ["decoders"],
    ["diagnose"],
    ["doctor"],
    ["bench", "decode"],
    ["evaluate"],
    ["bench", "photos"],
    ["bench", "sheet"],
    *(
        ["train", stage]
        for stage in (
            "tokenizer",
            "captions",
            "ar",
            "text",
            "upsampler",
            "reader",
            "classifier",
            "preview",
            "all",
            "export",
            "sprites",
        )
    ),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_examples(run: Run, command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Examples" in result.stdout
    assert f"$ mulosd {' '.join(command)}" in result.stdout


def test_root_help_lists_the_commands(run: Run) -> None:
    text = run("--help").stdout
    for command in ("generate", "info", "decoders", "calibrate", "bench", "evaluate", "train", "diagnose", "doctor"):
        assert re.search(rf"\b{command}\b", text)


def test_help_of_generate_fits_a_screen(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = run("generate", "--help").stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) <= 45
    assert "mulosd decoders" in " ".join(lines)


def test_decoders_lists_every_setting(run: Run) -> None:
    text = run("decoders").stdout
    for name, kind in DECODERS.items():
        assert re.search(rf"^{name}\b", text, re.M)
        for setting in kind.text_settings():
            assert re.search(rf"\b{setting}\b", text)


@pytest.mark.parametrize("name", list(DECODERS))
def test_decoders_tells_what_each_setting_means(run: Run, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = run("decoders", name).stdout
    for setting, kind in DECODERS[name].text_settings().items():
        found = re.search(rf"\b{setting} +{kind.removesuffix(' | None')} +(\S+) +\S.*", text)
        assert found, setting  # the last part is its meaning
        assert found[1] in ("none", str(DECODERS[name]().settings().get(setting)).lower(), "0.2")


def test_decoders_of_no_such_name(fails: Callable[..., str]) -> None:
    assert "draft-only" in fails("decoders", "magic")


def test_version(run: Run) -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.strip() == f"mulosd {mulosd.__version__}"


def test_info_of_one(run: Run, family: Path) -> None:
    text = run("info", family).stdout
    for part in ("random", "16 px", "2, 4", "apple", "tau"):
        assert part in text


def test_info_json(run: Run, family: Path) -> None:
    described = json.loads(run("info", family, "--json").stdout)
    assert described["image_sizes"] == [4, 8, 16]
    assert described["scales"] == [2, 4]
    assert described["calibration"]["4-latent"]["tau"] == 0.05
    assert sum(described["parameters"].values()) > 0
    assert "apple" in described["words"]


def test_info_lists_the_bundled_families(run: Run) -> None:
    listed = json.loads(run("info", "--json").stdout)["families"]
    assert [f["name"] for f in listed] == mulosd.list_families()
    assert run("info").exit_code == 0


def test_diagnose(run: Run) -> None:
    text = run("diagnose").stdout
    assert "verify_attention" in text
    assert "torch" in text
    assert mulosd.__version__ in text


def test_calibrate_stores_what_generate_uses(run: Run, family: Path, tmp_path: Path) -> None:
    own = copytree(family, tmp_path / "own")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red apple\n\nblue pear\n")
    options = ("--decoder", "mulo:scale=2:pool=4:radius=0", "--rejection", 0.25, "--prompts-file", prompts)
    result = run("calibrate", "--family", own, *options)
    assert result.exit_code == 0, result.output
    stored = json.loads((own / "family.json").read_text())["calibration"]
    found = {key: parse(of["decoder"]).settings() for key, of in stored.items()}
    assert found["2-latent"]["pool"] == 4
    assert found["2-latent"]["radius"] == 0
    assert found["4-latent"]["pool"] == 3
    assert f"{found['2-latent']['tau']:.3g}" in result.stdout
    run("generate", "apple", "--family", own, "--decoder", "mulo:scale=2", "--output", "a.png", "--stats", "s.json")
    used = json.loads(Path("s.json").read_text())["images"][0]["settings"]
    assert used["tau"] == found["2-latent"]["tau"]


def test_calibrate_chooses_the_fastest_setting_that_keeps_quality(run: Run, family: Path, tmp_path: Path) -> None:
    own = copytree(family, tmp_path / "own")
    (tmp_path / "p.txt").write_text("a red apple\nblue pear\n" * 3)
    options = ("--prompts-file", tmp_path / "p.txt", "--keep", "nll", "--rejection", 0.9999)
    result = run("calibrate", "--family", own, "--decoder", "mulo:scale=2:pool=2:radius=1:window=0", *options)
    assert result.exit_code == 0, result.output
    *refused, taken = [line for line in result.stdout.splitlines() if "against Serial" in line]
    assert "kept, and stored" in taken and all("not kept" in line for line in refused)
    stored = json.loads((own / "family.json").read_text())["calibration"]["2-latent"]
    settings = parse(stored["decoder"]).settings()
    assert settings["pool"] == 2 and settings["radius"] == 1
    assert f"tau={settings['tau']}" in taken
    before = (own / "family.json").read_text()
    wrong = run("calibrate", "--family", own, "--decoder", "mulo:scale=2", *options[:2], "--keep", "scenes")
    assert wrong.exit_code == 2 and "cannot be judged by scenes" in wrong.output
    assert (own / "family.json").read_text() == before


def test_bench_writes_its_report(run: Run, family: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red apple\nblue pear\n")
    options = ("--prompts-file", prompts, "--sweep", "mulo=0.01,0.2", "--json", "b.json")
    result = run(
        "bench",
        "decode",
        "--family",
        family,
        "--decoder",
        "serial,draft-only",
        "--decoder",
        "mulo:scale=2,zipar",
        *options,
    )
    assert result.exit_code == 0, result.output
    report = json.loads(Path("b.json").read_text())
    assert {"device", "versions", "commit", "family", "rows"} <= set(report)
    assert [row["decoder"] for row in report["rows"]] == ["serial", "draft-only", "mulo", "mulo"] + ["zipar"] * 3
    for row in report["rows"]:
        assert {"median", "p20", "p80"} <= set(row["seconds_per_image"])
        assert row["forwards"]
