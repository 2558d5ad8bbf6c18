"""`--quantization`: what is drawn, remembered and planned, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import Result

import mulosd
from mulosd.cli.image_files import read_settings

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
