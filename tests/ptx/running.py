"""Runs a case on the machine, and compares what it gave with what it must give."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .cases import Drawn
from .host import Gpu
from .report import Report


@dataclass
class Outcome:
    """The launches of a call, and every way in which it is wrong."""

    reports: list[Report]
    faults: list[str]
    differences: list[float]


def difference(got: torch.Tensor, want: torch.Tensor) -> float:
    """The largest difference, NaN and infinities of one kind being equal; infinite where kinds differ."""
    if got.shape != want.shape:
        return float("inf")
    a, b = got.double(), want.double()
    same = (a == b) | (a.isnan() & b.isnan())
    gap = torch.where(same, 0.0, (a - b).abs().nan_to_num(nan=float("inf")))
    return float(gap.max()) if gap.numel() else 0.0


def run(gpu: Gpu, drawn: Drawn, backend: str) -> Outcome:
    """One call on the machine."""
    first = len(gpu.reports)
    with gpu:
        got = drawn.call(backend)
    reports = gpu.reports[first:]
    faults = [f"{report.kernel}: {found}" for report in reports for found in report.findings.values()]
    if not reports:
        faults.append("nothing was launched")
    gaps = [difference(a, b) for a, b in zip(got, drawn.expected, strict=True)]
    for number, (gap, want) in enumerate(zip(gaps, drawn.expected, strict=True)):
        allowed = drawn.tolerance if want.is_floating_point() else 0
        if not gap <= allowed:
            faults.append(f"result {number} is off by {gap:.2g}, allowed are {allowed:g}")
    return Outcome(reports, faults, gaps)
