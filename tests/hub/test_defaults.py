"""Repositories through everything that draws: which decoder where none is named, and what is refused, and why."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from mulosd import MulosdPipeline
from mulosd.cli import app
from mulosd.cli.image_files import read_settings

PROMPT = "a red apple"
Run = Callable[..., Result]


@pytest.fixture(params=["janus", "emu3", "glm_image"])
def folder(request: pytest.FixtureRequest) -> str:
    """A repository, with settings behind it that make images small."""
    path = request.getfixturevalue(f"{request.param}_folder")
    return f"{path}{'' if request.param == 'janus' else ':grids=4:prompt_length=40'}"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("info", …)` runs a command in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


def said_once(result: Result) -> None:
    """Assert that one line tells that serial draws, and which decoders may be named."""
    [line] = [line for line in result.stderr.splitlines() if "not calibrated for mulo" in line]
    assert "is drawn with serial" in line and "jacobi" in line and "zipar" in line and "eagle" not in line


def test_generate(run: Run, folder: str) -> None:
    result = run("generate", PROMPT, "a table", "--family", folder, "--output", "out")
    assert result.exit_code == 0, result.output
    said_once(result)
    found = [read_settings(path) for path in Path("out").glob("*.png")]
    assert [str(f and f["decoder"]).partition(":")[0] for f in found] == ["serial", "serial"]
    named = run("generate", PROMPT, "--family", folder, "--decoder", "jacobi", "--output", "a.png")
    assert named.exit_code == 0 and "calibrated" not in named.output


def test_batch(run: Run, folder: str) -> None:
    Path("list.jsonl").write_text(
        "".join(f"{json.dumps(line)}\n" for line in ({"prompt": PROMPT}, {"prompt": PROMPT, "decoder": "jacobi"}))
    )
    result = run("batch", "list.jsonl", "--out", "out", "--family", folder)
    assert result.exit_code == 0, result.output
    said_once(result)
    rows = [json.loads(line) for line in Path("out", "images.jsonl").read_text().splitlines()]
    assert sorted(row["settings"]["decoder"].partition(":")[0] for row in rows) == ["jacobi", "serial"]


def test_serve(folder: str, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    from starlette.testclient import TestClient

    from mulosd.serve import Settings, create_app

    app = create_app(Settings(families=(folder,)))
    with caplog.at_level("INFO", "mulosd.serve"), TestClient(app, base_url="http://127.0.0.1") as client:
        end = time.monotonic() + 60
        while client.get("/health/ready").status_code != 200:
            assert time.monotonic() < end, client.get("/health/ready").text
            time.sleep(0.02)
        [model] = client.get("/v1/models").json()["data"]
        facts = model["mulosd"]
        assert facts["default_decoder"] == "serial"
        assert {"serial", "zipar", "jacobi"} <= set(facts["decoders"]) and "eagle" not in facts["decoders"]
        assert facts["qualities"]["high"] == "jacobi"
        assert facts["qualities"]["low"] == ("draft-only" if "draft-only" in facts["decoders"] else "serial")
        for quality, name in (("auto", "serial"), ("low", facts["qualities"]["low"]), ("high", "jacobi")):
            answer = client.post("/v1/images/generations", json={"prompt": PROMPT, "quality": quality, "seed": 1})
            assert answer.status_code == 200, answer.text
            assert answer.json()["data"][0]["mulosd"]["decoder"].partition(":")[0] == name
        wide = client.post("/v1/images/generations", json={"prompt": PROMPT, "size": "512x768"})
        assert wide.status_code == 400 and "images are square" in wide.json()["error"]["message"]
    assert sum("is drawn with serial" in record.getMessage() for record in caplog.records) == 1


def test_a_quality_that_was_asked_for_has_to_draw(janus_folder: Path) -> None:
    pytest.importorskip("fastapi")
    from mulosd.engine.engine import Engine
    from mulosd.serve import Settings, create_app

    engine = Engine.from_pretrained(janus_folder)
    with pytest.raises(ValueError, match="no grid of it divides the largest"):
        create_app(Settings(qualities={"low": "draft-only:scale=2"}), [engine])
    with pytest.raises(ValueError, match="no grid of it divides the largest"):
        create_app(Settings(decoder="mulo:tau=0:radius=0:pool=1"), [engine])


def test_pipeline(folder: str) -> None:
    pipe = MulosdPipeline.from_pretrained(folder)
    out = pipe(PROMPT, seed=3)
    assert [s and str(s.spelling).partition(":")[0] for s in out.stats] == ["serial"]
    assert out.images[0].tobytes() == pipe.engine.generate(PROMPT, seed=3).images[0].tobytes()


def test_two_grids_are_no_calibration(emu3_folder: Path) -> None:
    from mulosd.engine.decoding.default import applying
    from mulosd.engine.engine import Engine

    engine = Engine.from_pretrained(emu3_folder, grids=(4, 8), prompt_length=40)
    assert engine.resolve()[0].name == "serial" and not applying(engine.family)["mulo"]
    assert engine.resolve("mulo:tau=0.1:radius=1:pool=4")[0].name == "mulo"


def prompts(name: str = "prompts.txt") -> str:
    Path(name).write_text(f"{PROMPT}\na table\n")
    return name


def test_throughput(run: Run, folder: str) -> None:
    asked = ("bench", "throughput", "--family", folder, "--batch", 1, "--images", 1, "--rounds", 1)
    result = run(*asked, "--prompts-file", prompts(), "--json", "t.json")
    assert result.exit_code == 0, result.output
    assert "mulo is left out" in result.stderr
    assert [row["decoder"] for row in json.loads(Path("t.json").read_text())["rows"]] == ["serial", "zipar"]
    free = run(*asked)
    assert free.exit_code == 2 and "takes free text: give a file of prompts (--prompts-file" in free.stderr


def test_sheet_and_info(run: Run, folder: str) -> None:
    result = run("bench", "sheet", "--family", folder, "--prompts-file", prompts(), "--each", 1, "-o", "sheet.png")
    assert result.exit_code == 0 and Path("sheet.png").is_file(), result.output
    told = json.loads(run("info", folder, "--json").stdout)
    assert told["default"]["decoder"] == "serial"


def test_decode_and_evaluate_leave_out_what_cannot_draw(run: Run, janus_folder: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    asked: tuple[Any, ...] = ("--family", janus_folder)
    result = run("bench", "decode", *asked, "--prompts-file", prompts(), "--json", "d.json")
    assert result.exit_code == 0, result.output
    assert "draft-only is left out" in result.stderr and "mulo is left out" in result.stderr
    assert {row["decoder"] for row in json.loads(Path("d.json").read_text())["rows"]} == {"serial", "zipar"}
    assert "--prompts FILE" in run("evaluate", *asked, "--report", "r").stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("calibrate", "--prompts-file", "prompts.txt"), "calibrations are stored in a family.json"),
        (("bench", "ablations", "--prompts-file", "prompts.txt"), "no grid of it divides the largest"),
        (("bench", "acceptance", "--prompts-file", "prompts.txt"), "no grid of it divides the largest"),
        (("train", "align-upsampler", "--run", "r", "--output", "o"), "is a repository of the hub"),
        (("generate", PROMPT, "--size", "512x768"), "images are square"),
        (("generate", PROMPT, "--size", "512"), "draws 16 px"),
        (("generate", PROMPT, "--size", "wide"), "give a side in px"),
    ],
)
def test_what_is_refused_says_why(run: Run, janus_folder: Path, arguments: tuple[str, ...], word: str) -> None:
    prompts()
    result = run(*arguments, "--family", janus_folder)
    assert result.exit_code == 2 and word in result.stderr, result.output
    assert result.stderr.count("\n") == 1
