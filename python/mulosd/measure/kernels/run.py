"""Checks and times every case by every backend and peer, one row each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ...kernels import BackendUnavailable
from ...kernels.registry import BACKENDS
from ..ceilings import Ceilings, measured_ceilings
from ..machine import Machine
from ..rows import Row
from ..statistics import spread
from . import cases as table
from .cases import Case
from .floors import Limits, floor_us, limits_of
from .peers import Call, Unavailable
from .timing import time_calls

OPS = (
    "verify_attention",
    "kv_write",
    "fused_linear",
    "local_resample",
    "pooled_mass",
    "nearest_code",
    "expand_islands",
)
SECONDS = {True: 0.1, False: 0.5}


def bench_kernels(
    ops: list[str] | None = None,
    backends: list[str] | None = None,
    *,
    device: str = "cpu",
    quick: bool = False,
    cases: list[Case] | None = None,
    ceilings: Ceilings | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Row]:
    """Measure ops beside their peers.

    A result is compared to an oracle of higher precision first. What is wrong is not timed: its row has the status
    "failed". What cannot serve has a row with the status "skipped". The `note` of both says why.

    Args:
        ops: names out of `OPS`; None for all.
        backends: out of cuda, triton, cpu, torch and "peers"; None for all.
        device: where the tensors lie.
        quick: fewer and smaller shapes, less time each.
        cases: these instead of the table's.
        ceilings: of the CPU, where it is measured; None measures them.
        progress: called with (what, done, total).

    Returns:
        Rows whose texts are op, shape, dtype, backend, status and note. Those with the status "ok" have the values
        `median_us`, `p20_us` and `p80_us`, microseconds; `gb_per_s` and `tflop_per_s` of what the op cannot avoid;
        `floor_share`, the floor's time over the median, where the device's limits are known: a GPU's by its data sheet,
        a CPU's by its ceilings; and `max_error`.

    Raises:
        ValueError: an unknown op, backend or device.
    """
    wanted = backends or [*BACKENDS, "peers"]
    for name, given, possible in (("op", ops or [], OPS), ("backend", wanted, (*BACKENDS, "peers"))):
        unknown = [g for g in given if g not in possible]
        if unknown:
            raise ValueError(f"unknown {name} {', '.join(unknown)}; possible: {', '.join(possible)}")
    where = usable_device(device)
    chosen = [c for c in (table.cases(where, quick) if cases is None else cases) if not ops or c.op in ops]
    machine = Machine.here(where)
    if ceilings is None and where.type == "cpu":
        ceilings = measured_ceilings()
    rows: list[Row] = []
    for done, case in enumerate(chosen):
        if progress:
            progress("measuring", done, len(chosen))
        rows += [replace(row, machine=machine) for row in case_rows(case, wanted, where, SECONDS[quick], ceilings)]
    if progress:
        progress("measuring", len(chosen), len(chosen))
    return rows


def usable_device(name: str) -> torch.device:
    """ValueError for a device that is not there."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name!r}: {str(error).splitlines()[0]}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name!r}: kernels are measured on cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name!r}: torch sees no CUDA device; use cpu")
    return device


@torch.inference_mode()
def case_rows(
    case: Case, wanted: list[str], device: torch.device, seconds: float, ceilings: Ceilings | None = None
) -> list[Row]:
    """The rows of one case; too little memory for its tensors skips all of it."""
    limits = limits_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if ceilings is not None:
        # Exponentials are not bounded.
        limits = Limits(ceilings.bandwidth(case.work.bytes), ceilings.flops(2), ceilings.flops(4), math.inf)

    def row(backend: str, status: str, note: str = "", **values: float | None) -> Row:
        dtype = str(case.dtype).removeprefix("torch.")
        what = {"op": case.op, "shape": case.shape, "dtype": dtype, "backend": backend, "status": status, "note": note}
        return Row(what, values)

    try:
        problem = case.make(device)
    except torch.OutOfMemoryError as error:
        return [row("all", "skipped", first_line(error))]
    builds: dict[str, Callable[[], Call]] = {}
    for name in BACKENDS:
        if name in wanted:
            builds[name] = lambda name=name: problem.run(name)  # type: ignore[misc]
    if "peers" in wanted:
        builds |= problem.peers
    rows = []
    for name, build in builds.items():
        try:
            call = build()
            off = problem.error(call())
            if not off <= problem.tolerance:
                note = f"error {off:.3g} above {problem.tolerance:.3g}: not timed"
                # JSON has neither infinity nor NaN.
                rows.append(row(name, "failed", note, **({"max_error": off} if math.isfinite(off) else {})))
                continue
            found = spread(time_calls(call, device, seconds))
        except (Unavailable, BackendUnavailable, torch.OutOfMemoryError) as reason:
            rows.append(row(name, "skipped", declined(name, reason)))
        except Exception as reason:
            # A peer that this version of torch does not have is no fault of ours.
            status = "failed" if name in BACKENDS else "skipped"
            rows.append(row(name, status, f"{type(reason).__name__}: {first_line(reason)}"))
        else:
            rows.append(row(name, "ok", **figures(case, found, limits), max_error=off))
    return rows


def figures(case: Case, found: dict[str, float], limits: Limits | None) -> dict[str, Any]:
    """What times in microseconds say of a case's work, on a device of these limits."""
    median, floor = found["median"], floor_us(case.work, limits, case.dtype.itemsize)
    return {
        **{f"{name}_us": value for name, value in found.items()},
        "gb_per_s": case.work.bytes / median / 1e3,
        "tflop_per_s": case.work.flops / median / 1e6,
        "floor_share": None if floor is None else floor / median,
    }


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def declined(name: str, reason: BaseException) -> str:
    """The reason of the backend itself, out of the listing of all."""
    lines = [line.strip() for line in str(reason).splitlines()]
    return next((line.split(": ", 1)[1] for line in lines if line.startswith(f"{name}: ")), first_line(reason))[:200]
