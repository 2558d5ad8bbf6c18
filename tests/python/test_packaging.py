"""The package list, and a wheel that works in a clean environment away from the checkout."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
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
    """Output of a command that must succeed, run without what could lead back to the checkout.

    It may take its time: how long a build lasts says how busy the machine is, not whether the wheel is right.
    """
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    if env.get("MULOSD_REQUIRE_NATIVE"):
        env.setdefault("MULOSD_CUDA_ARCHS", "90-real")  # that kernels are packed, one architecture shows as well as all
    result = subprocess.run([*map(str, arguments)], cwd=cwd, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def executable(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


ALL = "-UCMAKE_CUDA_ARCHITECTURES"


@pytest.mark.parametrize(
    ("wanted", "tools", "asked", "told"),
    [
        ({}, {"nvcc": "", "nvidia-smi": "echo 9.0; echo 8.6; echo 9.0"}, "86-real;90-real", "86-real;90-real"),
        ({}, {"nvcc": "", "nvidia-smi": ""}, None, "no CUDA device"),
        ({}, {"nvcc": "", "nvidia-smi": "echo 7.5"}, None, "sm_75"),
        ({}, {"nvidia-smi": "echo 9.0"}, None, "no nvcc"),
        ({"MULOSD_CUDA_ARCHS": "all"}, {"nvcc": "", "nvidia-smi": ""}, ALL, "every architecture"),
        ({"MULOSD_CUDA_ARCHS": "100-real"}, {"nvcc": "", "nvidia-smi": "echo 9.0"}, "100-real", "100-real"),
        ({"MULOSD_REQUIRE_NATIVE": "1"}, {"nvcc": "", "nvidia-smi": "echo 9.0"}, ALL, "every architecture"),
        ({"MULOSD_REQUIRE_NATIVE": "1"}, {}, ALL, "every architecture"),
        (
            {"MULOSD_SKIP_NATIVE": "1", "MULOSD_REQUIRE_NATIVE": "1"},
            {"nvcc": "", "nvidia-smi": "echo 9.0"},
            None,
            "MULOSD_SKIP_NATIVE=1",
        ),
    ],
    ids=["devices", "no device", "old device", "no nvcc", "all", "one", "required", "required, no nvcc", "skipped"],
)
@pytest.mark.parametrize("works", [True, False], ids=["cmake", "cmake fails"])
def test_native_module_is_built_for_the_devices_or_as_asked(
    tmp_path: Path, wanted: dict[str, str], tools: dict[str, str], asked: str | None, told: str, works: bool
) -> None:
    """setup.py with stand-ins for the tools: what CMake is asked for, and the line that tells what became of it."""
    pytest.importorskip("pybind11")
    (tmp_path / "bin").mkdir()
    for name, script in {**tools, "cmake": f'echo "$@" >> {tmp_path}/asked; exit {0 if works else 1}'}.items():
        executable(tmp_path / "bin" / name, script)
    shutil.copy(ROOT / "setup.py", tmp_path)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MULOSD_", "CUDA"))}
    done = subprocess.run(
        [sys.executable, "setup.py", "build_py", "build_ext", "--build-lib", "build/lib"],
        cwd=tmp_path,
        env={**clean, "PATH": str(tmp_path / "bin"), **wanted},
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) == (works or asked is None or "MULOSD_REQUIRE_NATIVE" not in wanted), done.stderr
    calls = (tmp_path / "asked").read_text().splitlines() if (tmp_path / "asked").exists() else []
    skipped = bool(wanted.get("MULOSD_SKIP_NATIVE"))
    assert any("-DMULOSD_CUDA=OFF" in call and "-DMULOSD_HOST=ON" in call for call in calls) == (not skipped)
    cuda = [call for call in calls if "-DMULOSD_CUDA=ON" in call]
    # A module that is required ends the build at the first failure.
    assert bool(cuda) == (asked is not None and (works or "MULOSD_REQUIRE_NATIVE" not in wanted))
    if cuda:
        assert (asked if asked == ALL else f"-DCMAKE_CUDA_ARCHITECTURES={asked}") in cuda[0].split()
    if done.returncode == 0:
        lines = (tmp_path / "build" / "lib" / "mulosd" / "native.txt").read_text().splitlines()
        (line,) = (each for each in lines if each.startswith("mulosd._C"))
        (host,) = (each for each in lines if each.startswith("mulosd._cpu"))
        assert ("was not built" in host) == (skipped or not works)
        assert told in line and ("was not built" in line) == (asked is None or not works)
        assert line in done.stderr
        assert asked is not None or "MULOSD_CUDA_ARCHS=all" in line
    else:
        assert "was not built" in done.stderr


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
    assert {"mulosd/py.typed", "mulosd/native.txt"} <= names
    assert "mulosd/measure/page.html.j2" in names
    assert {f"mulosd/serve/page/{name}" for name in ("index.html", "page.css", "page.js")} <= names
    assert {f"mulosd/measure/{p.name}" for p in (ROOT / "python" / "mulosd" / "measure").glob("*.npz")} <= names
    assert licences == {"LICENSE", "NOTICE"}
    assert not [
        name for name in names if name.split("/")[0] not in ("mulosd", f"mulosd-{mulosd.__version__}.dist-info")
    ]
    if os.environ.get("MULOSD_REQUIRE_NATIVE"):
        assert [name for name in names if name.startswith("mulosd/_C.")]
        assert [name for name in names if name.startswith("mulosd/_cpu.")]


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
