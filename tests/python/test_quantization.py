"""`--quantization`: what is drawn, remembered and planned, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import Result

import mulosd
from mulosd.cli.image_files import read_settings
from mulosd.measure.speed.throughput import bench_throughput, throughput_table

Run = Callable[..., Result]
Fails = Callable[..., str]


def test_images_are_those_of_the_api_and_remember_it(run: Run, fails: Fails, family: Path) -> None:
    call = ("generate", "pear", "--family", family, "--decoder", "serial", "--output", "d")
    assert run(*call, "--quantization", "int8").exit_code == 0
    states = read_settings(Path("d/pear-seed0.png"))
    assert states is not None and states["quantization"] == "int8"
    engine = mulosd.Engine.from_pretrained(family, quantization="int8")
    [made] = engine.generate("pear", decoder="serial").images
    assert np.array_equal(np.asarray(Image.open("d/pear-seed0.png")), np.asarray(made))
    assert "drawn with quantization 'int8', not None" in fails(*call)
    assert "1 of 1 there already" in run(*call, "--quantization", "int8").stdout


def test_info_plans_for_it(run: Run, family: Path) -> None:
    found = [
        json.loads(run("info", family, "--json", "--dtype", "bfloat16", "--quantization", kind).stdout)["memory"]
        for kind in ("none", "int8", "fp8")
    ]
    assert [memory["quantization"] for memory in found] == [None, "int8", "fp8"]
    assert found[0]["weights"] > found[1]["weights"] == found[2]["weights"]
    assert found[0]["request"] == found[1]["request"]
    assert "layers in int8" in run("info", family, "--quantization", "int8").stdout


def test_a_server_holds_its_families_so_and_says_so(family: Path) -> None:
    pytest.importorskip("fastapi")
    from mulosd.serve.schema import ImageRequest
    from mulosd.serve.served import Served
    from mulosd.serve.server import load_engines
    from mulosd.serve.settings import Settings

    for kind, stated in (("int8", "int8"), ("none", None)):
        settings = Settings(families=(str(family),), decoder="serial", quantization=kind)
        [engine] = load_engines(settings)
        served = Served(engine, settings)
        asked = served.ask(ImageRequest(prompt="pear"))
        assert served.remembers(asked, "pear", 0).get("quantization") == stated


def test_what_a_device_cannot_do_is_refused(fails: Fails, family: Path) -> None:
    for devices in ((), ("--devices", "cpu,cpu")):
        told = fails("generate", "pear", "--family", family, "--quantization", "fp8", *devices)
        assert "'fp8' needs a GPU from sm_89 on" in told and "use 'int8'" in told


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "--report", "out", "--prompts", "2"),
        ("calibrate", "--prompts", "1"),
        ("bench", "decode", "--prompts", "2"),
        ("bench", "throughput", "--batch", "1"),
    ],
)
def test_commands_that_measure_load_the_family_so(fails: Fails, family: Path, command: tuple[str, ...]) -> None:
    told = fails(*command, "--family", family, "--quantization", "fp8")
    assert "'fp8' needs a GPU from sm_89 on" in told


def test_reports_say_so_and_another_call_does_not_go_on_with_them(run: Run, fails: Fails, family: Path) -> None:
    Path("prompts.txt").write_text("pear\n")
    asked = ("--family", family, "--prompts-file", "prompts.txt", "--decoder", "serial")
    call: tuple[str | Path, ...] = ("bench", "decode", *asked, "--runs", "runs.jsonl")
    result = run(*call, "--quantization", "int8", "--json", "held.json")
    assert result.exit_code == 0, result.output
    assert json.loads(Path("held.json").read_text())["quantization"] == "int8"
    assert "runs.jsonl" in fails(*call)


@pytest.mark.parametrize(("kind", "told"), [("int8", "float32, layers in int8"), (None, "float32:")])
def test_throughput_states_the_weights(family: Path, kind: str | None, told: str) -> None:
    engine = mulosd.Engine.from_pretrained(family, quantization=kind)
    report = bench_throughput(engine, ["pear"], [mulosd.Serial().resolve(engine.family)], [1], images=1, rounds=1)
    assert report.get("quantization") == kind
    assert told in str(throughput_table(report).title)


def test_a_calibration_drafts_by_the_weights_it_is_asked_for(
    run: Run, family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mulosd.engine.calibrate as module

    seen: list[str | None] = []
    calibrate = module.calibrate

    def watched(engine: mulosd.Engine, *arguments: Any, **options: Any) -> Any:
        seen.append(engine.family.quantization)
        return calibrate(engine, *arguments, **options)

    monkeypatch.setattr(module, "calibrate", watched)
    Path("prompts.txt").write_text("pear\n")
    result = run(
        "calibrate", "--family", family, "--prompts-file", "prompts.txt", "--rejection", "0.1", "--quantization", "int8"
    )
    assert result.exit_code == 0, result.output
    assert seen == ["int8"]
    assert mulosd.Engine.from_pretrained(family).family.quantization is None


def test_a_row_may_have_an_engine_of_its_own(run: Run, fails: Fails, family: Path) -> None:
    Path("prompts.txt").write_text("pear\n")
    call: tuple[str | Path, ...] = ("bench", "decode", "--family", family, "--prompts-file", "prompts.txt")
    rows = "serial,serial:dtype=bfloat16,serial:quantization=none"
    result = run(*call, "--decoder", rows, "--quantization", "int8", "--json", "rows.json")
    assert result.exit_code == 0, result.output
    found = [row["settings"] for row in json.loads(Path("rows.json").read_text())["rows"]]
    own = [{key: settings.get(key) for key in ("dtype", "quantization")} for settings in found]
    assert own == [
        {"dtype": None, "quantization": None},
        {"dtype": "bfloat16", "quantization": None},
        {"dtype": None, "quantization": "none"},
    ]
    assert "dtype must be one of float32" in fails(*call, "--decoder", "serial:dtype=float8")
    assert "must state dtype once" in fails(*call, "--decoder", "serial:dtype=")
