"""The bridge from setuptools to CMake, which builds the native modules mulosd._cpu and mulosd._C.

mulosd._cpu, the host kernels, is built wherever there is a C++ compiler; mulosd._C for the CUDA devices of this
machine, so not at all where there is none. What was done and why stands in mulosd/native.txt, which `make` and
`mulosd diagnose` print.

MULOSD_CUDA_ARCHS        build for these, whatever devices there are: "all" (sm_80, 90, 100, 120 and PTX), or a list as
                         CMake takes it, e.g. "90-real"
MULOSD_SKIP_NATIVE=1     leave both modules out
MULOSD_REQUIRE_NATIVE=1  build both, for all architectures unless some are named, and make a failure an error
MULOSD_VERBOSE_BUILD=1   show compiler commands and the registers and spills of every kernel
MULOSD_BUILD_JOBS        parallel compile jobs (default: ninja's choice)
"""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
RECORD = "native.txt"
CUDA, HOST = "mulosd._C (CUDA kernels)", "mulosd._cpu (host kernels)"
OLDEST = 80  # compute capability that the kernels are written for
HOW = "to build it anyway: MULOSD_CUDA_ARCHS=all, or one such as 90-real, when installing (docs/kernels.md)"


def flag(name: str) -> bool:
    return os.environ.get(name, "").lower() not in ("", "0", "false", "off", "no")


class Native(NamedTuple):
    """What to build: CMake's list of architectures ("" is the whole list of CMakeLists.txt, None nothing), and why."""

    archs: str | None
    why: str


def plan() -> Native:
    """What the environment asks for, or else what the devices of this machine can use."""
    asked = os.environ.get("MULOSD_CUDA_ARCHS", "")
    if flag("MULOSD_SKIP_NATIVE"):
        return Native(None, "MULOSD_SKIP_NATIVE=1")
    if asked.lower() == "all" or (not asked and flag("MULOSD_REQUIRE_NATIVE")):
        return Native("", "as asked")
    if asked:
        return Native(asked, "as asked")
    if not has_nvcc():
        return Native(None, "there is no nvcc on PATH")
    found = devices()
    usable = sorted(c for c in found if c >= OLDEST)
    if not found:
        return Native(None, "this machine has no CUDA device")
    if not usable:
        return Native(None, f"the newest device is sm_{max(found)}, the kernels need sm_{OLDEST}")
    return Native(";".join(f"{c}-real" for c in usable), "the devices of this machine")


def has_nvcc() -> bool:
    """Whether CMake will find a CUDA compiler."""
    named, toolkit = os.environ.get("CUDACXX"), os.environ.get("CUDA_PATH")
    places = [os.environ.get("PATH", os.defpath), *([str(Path(toolkit, "bin"))] if toolkit else [])]
    return bool(named) or shutil.which("nvcc", path=os.pathsep.join(places)) is not None


def devices() -> set[int]:
    """Compute capabilities of the CUDA devices here, 90 for 9.0, as nvidia-smi or else the driver tells them."""
    try:
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        told = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
        return {int(line.replace(".", "")) for line in told}
    except (OSError, subprocess.CalledProcessError, ValueError):
        pass  # not on PATH, or too old to know
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return set()
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return set()
    major, minor, found = ctypes.c_int(), ctypes.c_int(), set()
    for device in range(count.value):
        # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR; ordinals are handles
        if not (
            driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
            or driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
        ):
            found.add(10 * major.value + minor.value)
    return found


NATIVE = plan()


def tell(command: Command, *lines: str) -> None:
    """Say what became of the native modules, and leave those lines in the package: pip shows no output."""
    folder = ROOT / "python" if command.editable_mode else Path(command.build_lib)  # type: ignore[attr-defined]
    path = folder / "mulosd" / RECORD
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    for line in lines:
        command.warn(line)


def left_out() -> list[str]:
    """What is not even tried, and why."""
    lines = [f"{HOST} was not built: {NATIVE.why}"] if flag("MULOSD_SKIP_NATIVE") else []
    return lines if NATIVE.archs is not None else [*lines, f"{CUDA} was not built: {NATIVE.why}; {HOW}"]


class Python(build_py):
    """Copies the package; where a native module is left out, says so."""

    def run(self) -> None:
        super().run()
        tell(self, *left_out())


class CMakeBuild(build_ext):
    """Builds the modules with CMake; a failure leaves one out unless MULOSD_REQUIRE_NATIVE is set."""

    def run(self) -> None:
        self.told = left_out()
        super().run()
        tell(self, *self.told)

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        host = ext.name == "mulosd._cpu"
        build = Path(self.build_temp).resolve() / ("host" if host else "native")
        build.mkdir(parents=True, exist_ok=True)
        what, aim = (HOST, "") if host else (CUDA, f" for {NATIVE.archs or 'every architecture'}")
        try:
            self._cmake(target, build, host)
        except (ImportError, OSError, subprocess.CalledProcessError) as error:
            failure = "cmake failed" if isinstance(error, subprocess.CalledProcessError) else str(error)
            message = f"{what} was not built{aim}: {failure}"
            if not ext.optional:
                raise CompileError(f"{message}\n{error}") from error
            others = "those of torch serve" if host else "the kernels of torch and Triton serve"
            self.told.append(f"{message}; pip install -v shows more, and {others} without it")
        else:
            self.told.append(f"{what} was built{aim}: {'there is a C++ compiler' if host else NATIVE.why}")

    def _cmake(self, target: Path, build: Path, host: bool) -> None:
        import pybind11

        verbose = flag("MULOSD_VERBOSE_BUILD")
        configure = [
            "cmake",
            str(ROOT),
            "-G",
            "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DMULOSD_HOST={'ON' if host else 'OFF'}",
            f"-DMULOSD_CUDA={'OFF' if host else 'ON'}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DMULOSD_VERBOSE_PTXAS={'ON' if verbose else 'OFF'}",
            # Stated as the others are: a build folder remembers that of an isolated build, which is gone by the next.
            *([f"-DCMAKE_MAKE_PROGRAM={ninja}"] if (ninja := shutil.which("ninja")) else []),
        ]
        if not host:
            # Stated even when it is the default: a build folder remembers what an earlier call asked for.
            asked = f"-DCMAKE_CUDA_ARCHITECTURES={NATIVE.archs}" if NATIVE.archs else "-UCMAKE_CUDA_ARCHITECTURES"
            configure.append(asked)
        compile_ = ["cmake", "--build", str(build)]
        if jobs := os.environ.get("MULOSD_BUILD_JOBS"):
            compile_ += ["--parallel", jobs]
        if verbose:
            compile_.append("--verbose")
        subprocess.run(configure, cwd=build, check=True)
        subprocess.run(compile_, cwd=build, check=True)

    def copy_extensions_to_source(self) -> None:
        self.extensions = self._built()
        super().copy_extensions_to_source()

    def get_outputs(self) -> list[str]:
        return [path for path in super().get_outputs() if Path(path).exists()]

    def get_output_mapping(self) -> dict[str, str]:
        return {built: source for built, source in super().get_output_mapping().items() if Path(built).exists()}

    def _built(self) -> list[Extension]:
        library = Path(self.build_lib)
        return [ext for ext in self.extensions if (library / self.get_ext_filename(ext.name)).exists()]


def extensions() -> list[Extension]:
    wanted = [] if flag("MULOSD_SKIP_NATIVE") else ["mulosd._cpu"]
    if NATIVE.archs is not None:
        wanted.append("mulosd._C")
    return [Extension(name, sources=[], optional=not flag("MULOSD_REQUIRE_NATIVE")) for name in wanted]


setup(ext_modules=extensions(), cmdclass={"build_ext": CMakeBuild, "build_py": Python})
