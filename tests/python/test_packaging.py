"""The package list, and a wheel that works in a clean environment away from the checkout."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import mulosd

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {"mulosd": "python/mulosd", "mulosd.engine": "engine", "mulosd.kernels": "kernels"}


def source_files() -> dict[str, Path]:
    """Every Python file, by the path that it must have in the wheel."""
    return {
        f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder)}": path
        for package, folder in SOURCES.items()
        for path in (ROOT / folder).rglob("*.py")
    }


def test_every_package_is_listed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    in_tree = {name.rsplit("/", 1)[0].replace("/", ".") for name in source_files()}
    assert sorted(project["tool"]["setuptools"]["packages"]) == sorted(in_tree)


def test_version_is_that_of_the_metadata() -> None:
    assert importlib.metadata.version("mulosd") == mulosd.__version__


def test_every_page_that_is_linked_exists() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    broken = [
        f"{page.name}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert broken == []


def command(*arguments: str | Path, cwd: Path) -> str:
    """Output of a command that must succeed, run without what could lead back to the checkout."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    result = subprocess.run([*map(str, arguments)], cwd=cwd, env=env, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel made from the source distribution, so that both are complete."""
    out = tmp_path_factory.mktemp("dist")
    command(sys.executable, "-m", "build", "--outdir", out, ROOT, cwd=out)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; its dependencies are those of this one, which are not installed again."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    command(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    site = Path(command(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # A path in a .pth file is searched, but .pth files found there are not read: an editable install stays invisible.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


@pytest.mark.slow
def test_wheel_is_complete(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        licences = {name.rsplit("/", 1)[1] for name in names if "/licenses/" in name}
    assert set(source_files()) <= names
    families = ROOT / "python" / "mulosd" / "families"
    data = [p for p in families.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert {f"mulosd/families/{p.relative_to(families)}" for p in data} <= names
    assert "mulosd/py.typed" in names
    assert "mulosd/measure/page.html.j2" in names
    assert {f"mulosd/measure/{p.name}" for p in (ROOT / "python" / "mulosd" / "measure").glob("*.npz")} <= names
    assert licences == {"LICENSE", "NOTICE"}
    assert not [
        name for name in names if name.split("/")[0] not in ("mulosd", f"mulosd-{mulosd.__version__}.dist-info")
    ]
    if os.environ.get("MULOSD_REQUIRE_NATIVE"):
        assert [name for name in names if name.startswith("mulosd/_C.")]


@pytest.mark.slow
def test_installed_wheel_is_not_the_checkout(environment: Path, tmp_path: Path) -> None:
    code = (
        "import mulosd.engine.engine as e, mulosd.kernels as k, mulosd as m; print(e.__file__, k.__file__, m.__file__)"
    )
    for file in command(environment / "python", "-c", code, cwd=tmp_path).split():
        assert Path(file).is_relative_to(environment.parent)


@pytest.mark.slow
def test_installed_wheel_draws_with_the_bundled_family(environment: Path, tmp_path: Path) -> None:
    program = environment / "mulosd"
    families = json.loads(command(program, "info", "--json", cwd=tmp_path))["families"]
    assert "emoji" in [f["name"] for f in families]
    prompt = "a cat left of a guitar on a yellow background"
    command(program, "generate", prompt, "--seed", "7", "--output", "cat.png", "--stats", "s.json", cwd=tmp_path)
    with Image.open(tmp_path / "cat.png") as image:
        assert image.size == (256, 256)
        assert len(image.getcolors(1 << 16) or []) > 50
    stats = json.loads((tmp_path / "s.json").read_text())
    assert stats["warnings"] == []
    assert stats["images"][0]["decoder"] == "mulo"


@pytest.mark.slow
def test_installed_wheel_runs_the_examples(environment: Path, tmp_path: Path) -> None:
    command(environment / "python", ROOT / "examples" / "generate.py", cwd=tmp_path)
    command(environment / "python", ROOT / "examples" / "batch.py", cwd=tmp_path)
    assert {p.name for p in tmp_path.glob("*.png")} == {"serial.png", "mulo.png", "batch.png"}
