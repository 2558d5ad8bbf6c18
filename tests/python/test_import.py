"""`import mulosd` is light, and its names are there."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mulosd

HEAVY = ("torch", "numpy", "PIL", "safetensors", "triton")


def loaded_after(code: str) -> set[str]:
    """Heavy modules that a fresh interpreter has loaded after running `code`."""
    program = f"{code}\nimport sys\nprint('loaded:', *[m for m in {HEAVY!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(result.stdout.rsplit("loaded:", 1)[1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import mulosd; dir(mulosd); mulosd.__version__",
        "import mulosd.cli",
        "import mulosd.kernels",
        "from typer.testing import CliRunner as C\nimport mulosd.cli as c\nC().invoke(c.app, ['generate', '--help'])",
    ],
    ids=["package", "cli", "kernels", "help"],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    assert loaded_after(code) == set()


def test_every_public_name_resolves() -> None:
    for name in mulosd.__all__:
        assert getattr(mulosd, name) is not None
        assert name in dir(mulosd)
    assert mulosd.MuloSD is mulosd.MuloSD


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        mulosd.nonsense  # noqa: B018


def test_run_as_a_module() -> None:
    result = subprocess.run([sys.executable, "-m", "mulosd", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"mulosd {mulosd.__version__}\n"
