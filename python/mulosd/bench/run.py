"""Checks and times every case by every backend and peer, one row each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ..kernels import BackendUnavailable
from ..kernels.registry import BACKENDS
from . import cases as table
from .cases import Call, Case
from .floors import floor_us, limits_of
from .peers import Unavailable
from .rows import Row, origin
from .timing import measure

OPS = ("verify_attention", "kv_write", "local_resample", "pooled_mass", "nearest_code", "expand_islands")
SECONDS = {True: 0.1, False: 0.5}


def bench_kernels(
    ops: list[str] | None = None,
    backends: list[str] | None = None,
    *,
    device: str = "cpu",
    quick: bool = False,
    cases: list[Case] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Row]:
    """Measure ops beside their peers.

    A result is compared to an oracle of higher precision first. What is wrong is not timed: its row has the status
    "failed". What cannot serve has a row with the status "skipped" and the reason.

    Args:
        ops: names out of `OPS`; None for all.
        backends: out of cuda, triton, torch and "peers"; None for all.
        device: where the tensors lie.
        quick: fewer and smaller shapes, less time each.
        cases: these instead of the table's.
        progress: called with (what, done, total).

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
    about = origin(device)
    rows: list[Row] = []
    for done, case in enumerate(chosen):
        if progress:
            progress("measuring", done, len(chosen))
        rows += case_rows(case, wanted, where, SECONDS[quick], about)
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
def case_rows(case: Case, wanted: list[str], device: torch.device, seconds: float, about: dict[str, str]) -> list[Row]:
    """The rows of one case; an exception while its tensors are built, such as too little memory, fails the case."""
    head: dict[str, Any] = {"op": case.op, "shape": case.shape, "dtype": str(case.dtype).removeprefix("torch.")} | about
    try:
        problem = case.make(device)
    except torch.OutOfMemoryError as error:
        return [Row(**head, backend="all", status="skipped", note=first_line(error))]
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
                found: dict[str, Any] = {} if math.isnan(off) else {"max_error": off}
                note = f"error {off:.3g} above {problem.tolerance:.3g}: not timed"
                rows.append(Row(**head, backend=name, status="failed", note=note, **found))
                continue
            timing = measure(call, device, seconds)
        except (Unavailable, BackendUnavailable, torch.OutOfMemoryError) as reason:
            rows.append(Row(**head, backend=name, status="skipped", note=declined(name, reason)))
            continue
        except Exception as reason:
            # A peer that this version of torch does not have is no fault of ours.
            status = "failed" if name in BACKENDS else "skipped"
            rows.append(Row(**head, backend=name, status=status, note=f"{type(reason).__name__}: {first_line(reason)}"))
            continue
        work, micro = case.work, timing.median
        floor = floor_us(work, limits_of(about["device"]), case.dtype.itemsize)
        rows.append(
            Row(
                **head,
                backend=name,
                status="ok",
                median_us=timing.median,
                p20_us=timing.p20,
                p80_us=timing.p80,
                gb_per_s=work.bytes / micro / 1e3,
                tflop_per_s=work.flops / micro / 1e6,
                floor_share=None if floor is None else floor / micro,
                max_error=off,
            )
        )
    return rows


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def declined(name: str, reason: BaseException) -> str:
    """The reason of the backend itself, out of the listing of all."""
    lines = [line.strip() for line in str(reason).splitlines()]
    return next((line.split(": ", 1)[1] for line in lines if line.startswith(f"{name}: ")), first_line(reason))[:200]
