"""Every op, compiled: what a GPU would compute is what the reference says, and no access of it is wrong."""

from __future__ import annotations

import pytest

from .build import CAPABILITIES
from .cases import Case, all_cases
from .host import Gpu
from .running import run

CASES = [pytest.param(c, id=str(c), marks=() if c.core else pytest.mark.exhaustive) for c in all_cases()]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_compiled_kernels_agree_with_the_reference(gpu: Gpu, backend: str, case: Case) -> None:
    outcome = run(gpu, case.draw(), backend)
    assert not outcome.faults, "\n".join(outcome.faults)


@pytest.mark.parametrize("capability", CAPABILITIES[:1])
@pytest.mark.parametrize("backend", ["cuda"])
def test_results_do_not_depend_on_the_order_of_warps(gpu: Gpu, backend: str) -> None:
    gpu.seed = 1
    case = next(c for c in all_cases() if c.op == "expand_islands" and c.core)
    outcome = run(gpu, case.draw(), backend)
    assert not outcome.faults, "\n".join(outcome.faults)
