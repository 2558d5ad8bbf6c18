"""The bridge from setuptools to CMake, which builds the native module mulosd._C.

MULOSD_SKIP_NATIVE=1     leave the native module out
MULOSD_REQUIRE_NATIVE=1  make a failed build, or a machine without nvcc, an error
MULOSD_VERBOSE_BUILD=1   show compiler commands and the registers and spills of every kernel
MULOSD_CUDA_ARCHS        CMake's list of architectures, e.g. "90-real" (default: sm_80, 90, 100, 120 and PTX)
MULOSD_BUILD_JOBS        parallel compile jobs (default: ninja's choice)
"""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent


def flag(name: str) -> bool:
    return os.environ.get(name, "").lower() not in ("", "0", "false", "off", "no")


class CMakeBuild(build_ext):
    """Builds the module with CMake; a failure leaves it out unless MULOSD_REQUIRE_NATIVE is set."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / "native"
        build.mkdir(parents=True, exist_ok=True)
        try:
            self._cmake(target, build)
        except (ImportError, OSError, subprocess.CalledProcessError) as error:
            message = f"the native module mulosd._C was not built: {error}"
            if not ext.optional:
                raise CompileError(message) from error
            self.warn(f"{message}; the package works without it, with torch kernels only")

    def _cmake(self, target: Path, build: Path) -> None:
        import pybind11

        verbose = flag("MULOSD_VERBOSE_BUILD")
        configure = [
            "cmake",
            str(ROOT),
            "-G",
            "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DMULOSD_REQUIRE_CUDA={'ON' if flag('MULOSD_REQUIRE_NATIVE') else 'OFF'}",
            f"-DMULOSD_VERBOSE_PTXAS={'ON' if verbose else 'OFF'}",
        ]
        if archs := os.environ.get("MULOSD_CUDA_ARCHS"):
            configure.append(f"-DCMAKE_CUDA_ARCHITECTURES={archs}")
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


extensions = []
if not flag("MULOSD_SKIP_NATIVE"):
    extensions.append(Extension("mulosd._C", sources=[], optional=not flag("MULOSD_REQUIRE_NATIVE")))

setup(ext_modules=extensions, cmdclass={"build_ext": CMakeBuild})
