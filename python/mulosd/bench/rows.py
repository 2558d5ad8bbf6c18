"""Rows of a benchmark, in memory and as CSV."""

from __future__ import annotations

import csv
import io
import platform
import subprocess
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..atomic import atomic


@dataclass(frozen=True)
class Row:
    """One op at one shape by one backend or peer.

    `status` is "ok", "skipped" (`note` says why) or "failed" (wrong or raised; never timed). Times are microseconds.
    `floor_share` is the floor's time over the median: 1 would be perfect; None where the device's limits are not known.
    """

    op: str
    shape: str
    dtype: str
    backend: str
    status: str
    median_us: float | None = None
    p20_us: float | None = None
    p80_us: float | None = None
    gb_per_s: float | None = None
    tflop_per_s: float | None = None
    floor_share: float | None = None
    max_error: float | None = None
    note: str = ""
    device: str = ""
    versions: str = ""
    commit: str = ""
    date: str = ""


NUMBERS = tuple(field.name for field in fields(Row) if "float" in str(field.type))


def write_csv(path: Path, rows: list[Row]) -> None:
    """Write rows with a header; the file appears whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [field.name for field in fields(Row)])
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    with atomic(path) as file:
        file.write(text.getvalue().encode())


def read_csv(path: Path) -> list[Row]:
    """The rows that `write_csv` wrote."""
    rows = []
    with path.open(newline="") as file:
        for record in csv.DictReader(file):
            values: dict[str, Any] = dict(record)
            for name in NUMBERS:
                values[name] = float(values[name]) if values[name] else None
            rows.append(Row(**values))
    return rows


def origin(device: str) -> dict[str, str]:
    """What makes a row comparable: device, versions, commit, date."""
    import torch

    from .._version import __version__

    versions = [f"mulosd {__version__}", f"torch {torch.__version__}", f"python {platform.python_version()}"]
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    else:
        name = f"cpu, {torch.get_num_threads()} threads, {platform.machine()}"
    try:
        import triton

        versions.append(f"triton {triton.__version__}")
    except ImportError:
        pass
    return {
        "device": name,
        "versions": ", ".join(versions),
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def commit() -> str:
    """The commit of the source tree, or "" where there is none."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).resolve().parent, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
