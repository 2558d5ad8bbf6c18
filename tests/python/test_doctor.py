"""`mulosd doctor` on a machine without a GPU, and what it says where something is wrong."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from mulosd.cli.app import app
from mulosd.measure import doctor

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU is tested")

PIXELS_AGREE = doctor.pixels_agree


@pytest.fixture(autouse=True)
def _no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gpus", list)
    monkeypatch.setattr(doctor, "pixels_agree", lambda _: (True, "left out"))


def findings(device: str | None = None) -> dict[str, doctor.Finding]:
    return {f.check: f for f in doctor.examine(device)}


def test_a_machine_without_a_gpu_is_right_and_its_ops_and_images_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "pixels_agree", PIXELS_AGREE)
    found = findings()
    assert "pixels off by 0" in found["pixels of a bundled family"].said
    assert "no GPU here" in found["driver"].said and found["driver"].right is None
    assert not [f for f in found.values() if f.right is False]
    ops = {name.split(",")[0] for name, f in found.items() if ", torch," in name and f.right}
    assert ops == {
        "verify_attention",
        "kv_write",
        "fused_linear",
        "local_resample",
        "pooled_mass",
        "nearest_code",
        "expand_islands",
    }
    assert found["image against the CPU's"].right and found["graph replay"].right is None


def test_a_gpu_that_torch_does_not_see_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gpus", lambda: ["NVIDIA H200, 580.65, 143771 MiB"])
    found = findings()
    assert found["driver"].right and found["torch"].right is False
    assert "pip install torch" in found["torch"].remedy


def test_a_device_that_was_asked_for_must_be_there() -> None:
    found = findings("cuda:0")
    assert found["driver"].right is False and "driver" in found["driver"].remedy
    assert found["torch"].right is False


def test_an_op_that_errs_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.shapes.attention

    def slipped(*args: object) -> doctor.Case:
        case = real(*args)  # type: ignore[arg-type]
        make = case.make

        def bad(device: torch.device) -> object:
            problem = make(device)
            run = problem.run
            return doctor.shapes.Problem(
                lambda backend: lambda: run(backend)() + 0.01, problem.error, problem.tolerance, {}
            )

        return doctor.Case(case.op, case.shape, case.dtype, case.work, bad)  # type: ignore[arg-type]

    monkeypatch.setattr(doctor.shapes, "attention", slipped)
    found = findings()
    [wrong] = {f.check for f in found.values() if f.right is False}
    assert wrong == "verify_attention, torch, float32"


def test_the_command_ends_with_one_where_something_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def examine(_: str | None) -> list[doctor.Finding]:
        return [doctor.Finding("a", True, "fine"), doctor.Finding("b", False, "bad", "mend it")]

    monkeypatch.setattr(doctor, "examine", examine)
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "verify_attention" in done.stdout, "what diagnose prints comes first"
    assert "to do: mend it" in done.stdout and "1 wrong" in done.stdout
    assert CliRunner().invoke(app, ["doctor", "--device", "tpu"]).exit_code == 2
