"""The nodes of examples/comfyui on a stand-in for ComfyUI."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfy_standin import (
    STRING,
    ComboInput,
    Comfy,
    ComfyNode,
    InterruptProcessingException,
    InvalidWorkflow,
    NodeOutput,
    Schema,
    io_type,
)

import mulosd

FOLDER = Path(__file__).parents[2] / "examples" / "comfyui"


@pytest.fixture
def comfy() -> Iterator[Comfy]:
    torch.set_num_threads(1)
    running = Comfy()
    with running.custom_nodes(FOLDER):
        yield running


@pytest.fixture
def workflow(family: Path) -> dict[str, Any]:
    """That of the folder, over a small family."""
    found = json.loads((FOLDER / "workflow_api.json").read_text())
    found["1"]["inputs"]["folder"] = str(family)
    found["2"]["inputs"]["prompt"] = "red apple"
    found["2"]["inputs"]["settings"] = "scale=2:rows_per_cycle=2"
    return found


def changed(workflow: dict[str, Any], number: str, **inputs: Any) -> dict[str, Any]:
    made = deepcopy(workflow)
    made[number]["inputs"].update(inputs)
    return made


def drawn(family: Path, **options: Any) -> np.ndarray:
    """What the engine draws, float32 [B, H, W, 3] from 0 to 1."""
    images = mulosd.Engine.from_pretrained(family).generate("red apple", **options).images
    return np.stack([np.asarray(image, np.float32) / np.float32(255) for image in images])


def test_the_workflow_draws_what_the_engine_draws(comfy: Comfy, workflow: dict[str, Any], family: Path) -> None:
    images = comfy.queue(workflow)["3"][0]
    assert images.shape == (2, 16, 16, 3) and images.dtype == torch.float32 and images.device.type == "cpu"
    wanted = drawn(family, seed=7, num_images=2, decoder="mulo:scale=2:rows_per_cycle=2")
    assert np.array_equal(images.numpy(), wanted) and comfy.executed == ["MulosdLoader", "MulosdSampler", "SaveImage"]
    report = comfy._kept["2"].values[1].splitlines()
    assert [line.split(":")[0] for line in report if line.startswith("seed ")] == ["seed 7", "seed 8"]
    small = comfy.queue(changed(workflow, "2", decoder="jacobi", settings="", size=8, guidance=2.0))["3"][0]
    assert np.array_equal(
        small.numpy(), drawn(family, seed=7, num_images=2, decoder="serial:grid=4", sampling="cfg_scale=2")
    )
    told = comfy.queue(changed(workflow, "2", prompt="apple zebra"))
    assert told and "zebra" in comfy._kept["2"].values[1]


def test_the_workflow_of_the_folder_is_valid_as_it_is(comfy: Comfy) -> None:
    original = json.loads((FOLDER / "workflow_api.json").read_text())
    for number in original:
        comfy._check(original, number)
    assert original["1"]["inputs"]["family"] in mulosd.list_families()


def test_previews_come_on_the_way(comfy: Comfy, workflow: dict[str, Any]) -> None:
    images = comfy.queue(workflow)["3"][0]
    values = [value for value, *_ in comfy.progress]
    assert len(values) >= 6 and values == sorted(values) and values[0] < values[-1] == 2.0
    assert {most for _, most, _ in comfy.progress} == {2}
    assert all(image.size == (16, 16) for *_, image in comfy.progress)
    last = np.asarray(comfy.progress[-1][2], np.float32) / np.float32(255)
    assert any(np.array_equal(last, image.numpy()) for image in images)


def test_the_same_seed_runs_nothing_and_another_only_the_sampler(comfy: Comfy, workflow: dict[str, Any]) -> None:
    first = comfy.queue(workflow)["3"][0]
    assert comfy.queue(workflow)["3"][0] is first and comfy.executed == []
    other = comfy.queue(changed(workflow, "2", seed=8))["3"][0]
    assert comfy.executed == ["MulosdSampler", "SaveImage"]
    assert torch.equal(other[0], first[1]) and not torch.equal(other[0], first[0])
    assert torch.equal(comfy.queue(workflow)["3"][0], first)


def test_a_folder_that_has_changed_is_loaded_again(comfy: Comfy, workflow: dict[str, Any], tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(workflow["1"]["inputs"]["folder"], mine)
    mine_workflow = changed(workflow, "1", folder=str(mine))
    comfy.queue(mine_workflow)
    text = (mine / "family.json").read_text()
    (mine / "family.json").write_text(text + "\n")
    comfy.queue(mine_workflow)
    assert comfy.executed == ["MulosdLoader", "MulosdSampler", "SaveImage"]
    comfy.queue(mine_workflow)
    assert comfy.executed == []


def test_widgets_that_became_links_are_checked_when_they_are_known(
    comfy: Comfy, workflow: dict[str, Any], family: Path
) -> None:
    combo = io_type("COMBO", ComboInput)

    class Words(ComfyNode):
        @classmethod
        def define_schema(cls) -> Schema:
            return Schema("Words", outputs=[combo.Output(), STRING.Output(), STRING.Output()])

        @classmethod
        def execute(cls) -> NodeOutput:
            return NodeOutput("mulo", "scale=2:rows_per_cycle=2", str(family))

    wanted = comfy.queue(workflow)
    comfy.nodes["Words"] = Words
    linked = changed({**workflow, "9": {"class_type": "Words", "inputs": {}}}, "1", folder=["9", 2])
    found = comfy.queue(changed(linked, "2", decoder=["9", 0], settings=["9", 1]))
    assert "MulosdSampler" in comfy.executed and torch.equal(wanted["3"][0], found["3"][0])


def test_cancel_ends_the_work(comfy: Comfy, workflow: dict[str, Any]) -> None:
    comfy.queue(workflow)
    pipeline = comfy._kept["1"].values[0]
    comfy.interrupt_at = 1
    with pytest.raises(InterruptProcessingException):
        comfy.queue(changed(workflow, "2", seed=9))
    assert len(comfy.progress) == 1 and not pipeline.engine.busy
    assert comfy.queue(workflow)["3"][0].shape[0] == 2


@pytest.mark.parametrize(
    ("number", "inputs", "told"),
    [
        ("1", {"folder": "/nowhere"}, "'/nowhere' is no family"),
        ("1", {"family": "stable-diffusion"}, "emoji"),
        ("1", {"device": "tpu"}, "cuda"),
        ("2", {"settings": "speed=9"}, "no setting 'speed=9'"),
        ("2", {"settings": "tau=much"}, "tau must be"),
        ("2", {"seed": -1}, "smaller than 0"),
        ("2", {"seed": 2**53}, "larger than"),
        ("2", {"batch_size": 0}, "smaller than 1"),
        ("2", {"pipeline": "1"}, "must be connected"),
        ("2", {"prompt": ["1", 0]}, "takes STRING, not MULOSD_PIPELINE"),
    ],
)
def test_what_cannot_be_is_told_before_it_is_queued(
    comfy: Comfy, workflow: dict[str, Any], number: str, inputs: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidWorkflow, match=told):
        comfy.queue(changed(workflow, number, **inputs))
    assert comfy.executed == []


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"prompt": " "}, "the prompt is empty"),
        ({"size": 9}, "draws 4, 8, 16 px"),
        ({"size": 8}, "draws 16 px alone.* jacobi"),
    ],
)
def test_what_only_the_family_knows_is_told_when_it_runs(
    comfy: Comfy, workflow: dict[str, Any], inputs: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        comfy.queue(changed(workflow, "2", **inputs))


def test_the_device_is_that_of_comfyui_where_an_engine_runs_on_it(family: Path, workflow: dict[str, Any]) -> None:
    with (running := Comfy("meta")).custom_nodes(FOLDER):  # as "mps": no engine runs there
        running.queue(workflow)
        assert running._kept["1"].values[0].device.type == "cpu"
    if not torch.cuda.is_available():
        with (running := Comfy("cuda")).custom_nodes(FOLDER), pytest.raises(ValueError, match="no CUDA device"):
            running.queue(workflow)


def test_without_mulosd_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mulosd", None)
    with pytest.raises(ImportError, match=r"pip install"), Comfy().custom_nodes(FOLDER):
        pass
    assert importlib.util.find_spec("comfy") is None and "comfy" not in sys.modules
