"""A small family on disk, and the command line as tests call it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mulosd.cli import app
from mulosd.engine.family_config import Calibration
from mulosd.engine.random_family import random_family

Run = Callable[..., Result]

CALIBRATIONS = [Calibration(scale, "latent", pool=3, radius=1, tau=0.05) for scale in (2, 4)]


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random family: 16-px pictures, scales 2 and 4, calibrated."""
    made = random_family(drafter=True)
    made.config = replace(made.config, calibrations={c.key: c for c in CALIBRATIONS})
    return made.save(tmp_path_factory.mktemp("families") / "random")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("info", ...)` runs a command in an empty directory and returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MULOSD_BACKEND", raising=False)

    def call(*arguments: str | Path) -> Result:
        return CliRunner().invoke(app, [str(a) for a in arguments])

    return call


@pytest.fixture
def fails(run: Run) -> Callable[..., str]:
    """Runs a command that must fail as a caller's mistake: exit code 2, one `error:` line, nothing written."""

    def call(*arguments: str | Path) -> str:
        before = sorted(Path().rglob("*"))
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        assert "Traceback" not in result.output
        assert sorted(Path().rglob("*")) == before
        return result.stderr

    return call
