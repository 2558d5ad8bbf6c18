"""Builds mulosd._C with its real host code over `cudart.cpp`, and keeps the PTX of its kernels."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
CAPABILITIES = (80, 90)


class Native(NamedTuple):
    """The module, its library, and the files of PTX: (compute capability, name of a kernel) -> file."""

    module: ModuleType
    library: Path
    ptx: dict[tuple[int, str], Path]


def missing() -> str | None:
    """Why the CUDA kernels cannot be built here, or None."""
    for tool in ("nvcc", "g++"):
        if shutil.which(tool) is None:
            return f"{tool} is not on PATH: it compiles the CUDA kernels"
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 is not installed: the native module is built with it"
    return None


@lru_cache(maxsize=1)
def build() -> Native:
    """The module of this checkout; a source is compiled once for each state of it and of its headers."""
    cache = Path(tempfile.gettempdir()) / f"mulosd-ptx-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other processes want the same
        with ThreadPoolExecutor(2) as pool:
            folders = list(pool.map(lambda s: _compiled(s, cache), [*_sources(), HERE / "cudart.cpp"]))
        name = hashlib.sha256(" ".join(f.name for f in folders).encode()).hexdigest()[:16]
        library = cache / name / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        if not library.exists():
            library.parent.mkdir(exist_ok=True)
            made = library.with_suffix(".part")
            # The symbols of this library first: torch may have brought another runtime into the process.
            _run(["g++", "-shared", "-Wl,-Bsymbolic", "-o", str(made), *(str(f / "object.o") for f in folders)])
            made.replace(library)
    ptx = {}
    for folder in folders:
        for file in folder.glob("*.ptx"):
            capability = int(file.stem.rpartition("_")[2])
            for kernel in re.findall(r"\.entry\s+([$\w]+)", file.read_text()):
                ptx[capability, kernel] = file
    spec = importlib.util.spec_from_file_location("_C", library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Native(module, library, ptx)


def _sources() -> list[Path]:
    """The slowest to compile first."""
    return sorted([*CSRC.glob("*.cu"), *CSRC.glob("*.cpp")], key=lambda p: (p.stem != "local_resample", p.name))


def _compiled(source: Path, cache: Path) -> Path:
    """The folder that holds `object.o` and the PTX of a source."""
    if source.suffix == ".cu":
        archs = [f"-gencode=arch=compute_{c},code=compute_{c}" for c in CAPABILITIES]
        command = ["nvcc", "-std=c++17", "-O3", "-lineinfo", "-Xcompiler", "-fPIC,-O0", *archs, "--keep"]
    else:
        # The host code of a test runs a few times: it need not be fast.
        shown = r"\,".join(map(str, CAPABILITIES))
        command = [
            "nvcc",
            "-std=c++17",
            "-Xcompiler",
            "-fPIC,-O0",
            "-DMULOSD_WITH_CUDA",
            rf"-DMULOSD_ARCHS=\"{shown}\"",
        ]
        command += [f"-I{_pybind()}", f"-I{sysconfig.get_paths()['include']}"]
    command.append(f"-I{CSRC / 'include'}")
    digest = hashlib.sha256(" ".join([_compiler(), *command]).encode())
    for file in sorted(_read(source, set())):
        digest.update(file.read_bytes())
    folder = cache / f"{source.stem}-{digest.hexdigest()[:16]}"
    if not (folder / "object.o").exists():
        with tempfile.TemporaryDirectory(dir=cache) as made:
            keep = ["--keep-dir", made] if source.suffix == ".cu" else []
            _run([*command, *keep, "-c", str(source), "-o", f"{made}/object.o"])
            folder.mkdir(exist_ok=True)
            for file in [*Path(made).glob("*.ptx"), Path(made) / "object.o"]:
                file.rename(folder / file.name)
    return folder


def _read(source: Path, known: set[Path]) -> set[Path]:
    """A source and the headers of the project that it includes."""
    known.add(source)
    for name in re.findall(r'#include "(mulosd/[^"]+)"', source.read_text()):
        header = CSRC / "include" / name
        if header not in known:
            _read(header, known)
    return known


@lru_cache(maxsize=1)
def _compiler() -> str:
    return subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout


def _pybind() -> str:
    import pybind11

    return pybind11.get_include()


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
