"""What a measurement ran on: device, versions, commit, date."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._version import __version__


@dataclass(frozen=True)
class Machine:
    """What makes figures comparable.

    Attributes:
        device: in words: the GPU's name, or the processor's with its threads.
        versions: of what computes, by package.
        commit: of the checkout, None for an installed package.
        date: when, ISO 8601, UTC; None where a report does not say.
        threads: of torch on the CPU; None where a report does not say.
    """

    device: str
    versions: dict[str, str]
    commit: str | None = None
    date: str | None = None
    threads: int | None = None

    @classmethod
    def here(cls, device: torch.device | str) -> Machine:
        """This machine, now."""
        return cls(device_name(torch.device(device)), versions(), commit(), now(), torch.get_num_threads())

    @classmethod
    def of(cls, report: dict[str, Any]) -> Machine:
        """The machine that a report (or a row of its own) was made on."""
        return cls(
            report.get("device", ""),
            report.get("versions") or {},
            report.get("commit"),
            report.get("date"),
            report.get("threads"),
        )


def weights_of(report: dict[str, Any]) -> str:
    """The type of the weights that a report is of, in words."""
    held = report.get("quantization")
    return str(report["dtype"]) if held is None else f"{report['dtype']}, layers in {held}"


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def device_name(device: torch.device) -> str:
    """A device in words: the GPU's name, or the processor's with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor_name()}, {threads} thread{'s' if threads > 1 else ''}"


def processor_name() -> str:
    """The model of the CPU as it names itself."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return name


def versions() -> dict[str, str]:
    """Versions of what computes."""
    found = {
        "mulosd": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    try:
        return {**found, "triton": version("triton")}
    except PackageNotFoundError:
        return found


def commit() -> str | None:
    """Commit of the checkout that this package runs from, with "-dirty" when it was changed; None for an install."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=here.parent, capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed copy may lie inside someone else's checkout: only a tracked file tells this project's commit.
    if git("ls-files", "--error-unmatch", here.name) is None:
        return None
    head = git("rev-parse", "HEAD")
    return f"{head}-dirty" if head and git("status", "--porcelain", "--untracked-files=no") else head
