"""The device guard of a CUDA that is not there, compiled once for each version of torch."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("guard.cpp")


def missing() -> str | None:
    """Why the device cannot be made up here, or None."""
    if torch.version.cuda is not None:
        return "this build of torch has CUDA: the device lane (pytest -m gpu) tests it"
    if shutil.which("g++") is None:
        return "g++ is not on PATH: it compiles the device guard of the made-up device"
    return None


@lru_cache(maxsize=1)
def load() -> None:
    """Make torch accept tensors on CUDA devices, for as long as the process lives."""
    root = Path(torch.__file__).parent
    stamp = f"{torch.__version__}-{SOURCE.stat().st_mtime_ns}-{os.getuid()}"
    library = Path(tempfile.gettempdir()) / f"mulosd-fake-guard-{stamp}.so"
    if not library.exists():
        # Written beside it and moved there: another process may be at it too.
        made = library.with_suffix(f".{os.getpid()}")
        command = ["g++", "-O1", "-std=c++20", "-fPIC", "-shared", f"-I{root / 'include'}", "-o", str(made)]
        subprocess.run([*command, str(SOURCE), f"-L{root / 'lib'}", "-lc10"], check=True)
        made.replace(library)
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
