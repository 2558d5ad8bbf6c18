"""What the kernel tests share: an oracle in numpy float64, and the CUDA sources compiled for the host."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Array = np.ndarray
ROOT = Path(__file__).resolve().parents[2]
EMULATOR = Path(__file__).resolve().parent / "emulator"


def exact_distribution(
    cond: Array, uncond: Array | None, cfg_scale: float, temperature: float, top_k: int, top_p: float
) -> Array:
    """The processed distribution [R, V] in float64, row by row and by the definitions."""
    rows = []
    for r in range(len(cond)):
        z = cond[r].astype(np.float64)
        if uncond is not None:
            u = uncond[r].astype(np.float64)
            z = u + cfg_scale * (z - u)
        if temperature == 0:
            rows.append(np.eye(len(z))[int(np.argmax(z))])
            continue
        z = z / temperature
        keep = np.ones(len(z), dtype=bool)
        if 0 < top_k < len(z):
            keep &= z >= sorted(z, reverse=True)[top_k - 1]
        p = np.where(keep, np.exp(z - z.max()), 0.0)
        p /= p.sum()
        if top_p < 1:
            total, chosen = 0.0, np.zeros(len(z), dtype=bool)
            for i in sorted(range(len(z)), key=lambda i: (-p[i], i)):
                if total >= top_p:
                    break
                chosen[i] = True
                total += p[i]
            p = np.where(chosen, p, 0.0)
            p /= p.sum()
        rows.append(p)
    return np.stack(rows)


@pytest.fixture(scope="session")
def distribution() -> Callable[..., Array]:
    return exact_distribution


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels of csrc/ under the emulator."""
    build = tmp_path_factory.mktemp("emulator")
    (build / "mulosd").mkdir()
    for source in (ROOT / "csrc" / "include" / "mulosd").iterdir():
        # Dynamic shared memory becomes an array that the driver defines.
        (build / "mulosd" / source.name).write_text(source.read_text().replace("extern __shared__", "extern"))
    target = build / "kernels.so"
    command = ["g++", "-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-shared", "-fPIC", "-w"]
    include = [f"-I{EMULATOR}", f"-I{build}"]
    done = subprocess.run(
        [*command, *include, str(EMULATOR / "driver.cpp"), "-o", str(target)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(target))
