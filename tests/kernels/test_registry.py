"""Which backend serves, who says why not, and that imports stay lazy."""

from __future__ import annotations

import inspect
import subprocess
import sys
import time
from typing import NamedTuple

import pytest
import torch

from mulosd.kernels import registry
from mulosd.kernels.registry import BackendUnavailable, Op


class Call(NamedTuple):
    tensor: torch.Tensor
    x: float = 1.0


@pytest.fixture
def op(monkeypatch: pytest.MonkeyPatch) -> Op:
    """An op with a CUDA backend that takes positive numbers only, outside the real table."""
    monkeypatch.setattr(registry, "OPS", {})
    monkeypatch.delenv(registry.ENVIRONMENT, raising=False)

    class Fake:
        __name__ = "fake_cuda"

        @staticmethod
        def unusable() -> str | None:
            return None

        @staticmethod
        def decline(call: Call) -> str | None:
            return None if call.x > 0 else "only positive numbers"

        @staticmethod
        def run(call: Call) -> tuple[str, float]:
            return "cuda", call.x

    monkeypatch.setitem(sys.modules, "fake_cuda", Fake)  # type: ignore[arg-type]
    modules = {"cuda": "fake_cuda", "triton": "mulosd.kernels.no_such_module"}
    return Op("fake", Call, lambda tensor, x: ("torch", x), modules=modules)


CPU = torch.zeros(1)
META = torch.zeros(1, device="meta")


def test_cpu_tensors_go_to_torch(op: Op) -> None:
    assert op(Call(CPU)) == ("torch", 1.0)


def test_cpu_tensors_go_to_the_cpu_backend_where_it_is_able(op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    class Host:
        reason: str | None = None

        @classmethod
        def unusable(cls) -> str | None:
            return cls.reason

        @staticmethod
        def decline(call: Call) -> str | None:
            return None if call.x > 0 else "only positive numbers"

        @staticmethod
        def run(call: Call) -> tuple[str, float]:
            return "cpu", call.x

    monkeypatch.setitem(sys.modules, "fake_host", Host)  # type: ignore[arg-type]
    both = Op("both", Call, op.reference, modules={**op.modules, "cpu": "fake_host"})
    assert both(Call(CPU)) == ("cpu", 1.0)
    assert both(Call(CPU, -1.0)) == ("torch", -1.0)
    assert both(Call(CPU), "torch") == ("torch", 1.0)
    Host.reason = "not built"
    assert both(Call(CPU)) == ("torch", 1.0)
    with pytest.raises(BackendUnavailable, match="cpu: not built"):
        both(Call(CPU), "cpu")


def test_other_devices_take_the_first_able_backend(op: Op) -> None:
    assert op(Call(META)) == ("cuda", 1.0)
    assert op(Call(META, -1.0)) == ("torch", -1.0)


def test_argument_and_environment_force(op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    assert op(Call(CPU), "cuda") == ("cuda", 1.0)
    assert op(Call(META), "torch") == ("torch", 1.0)
    monkeypatch.setenv(registry.ENVIRONMENT, "cuda")
    assert op(Call(CPU)) == ("cuda", 1.0)
    assert op(Call(CPU), "torch") == ("torch", 1.0)  # the argument goes before the environment
    monkeypatch.setenv(registry.ENVIRONMENT, "")
    assert op(Call(CPU)) == ("torch", 1.0)


@pytest.mark.parametrize("forced", ["cuda", "triton", "opencl"])
def test_impossible_choice_prints_every_reason(op: Op, forced: str) -> None:
    with pytest.raises(BackendUnavailable) as caught:
        op(Call(CPU, -1.0), forced)
    text = str(caught.value)
    assert repr(forced) in text
    assert "only positive numbers" in text
    assert "no_such_module" in text
    assert "torch: able" in text


def test_unknown_backend_in_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="opencl"):
        Op("bad", Call, lambda call: None, modules={"opencl": "x"})
    assert "bad" not in registry.OPS


def test_diagnose_lists_every_op_and_backend() -> None:
    report = registry.diagnose()
    ops = {row.op for row in report}
    assert {"expand_islands", "kv_write", "local_resample", "nearest_code", "pooled_mass", "verify_attention"} <= ops
    assert len(report) == len(registry.BACKENDS) * len(ops)
    for row in report:
        assert row.usable == (row.reason == "")
        assert row.usable or row.backend != "torch"


def test_real_op_declines_cuda_for_cpu_tensors() -> None:
    from mulosd.kernels import local_resample

    with pytest.raises(BackendUnavailable, match="local_resample: backend 'cuda' cannot serve"):
        local_resample(torch.zeros(1, 4), None, torch.zeros(1, 4), backend="cuda")


def test_dispatch_on_cpu_costs_little(op: Op) -> None:
    direct = op.reference
    best = {"op": 1.0, "direct": 1.0}
    for _ in range(20):
        for name, call in (("op", lambda: op(Call(CPU))), ("direct", lambda: direct(*Call(CPU)))):
            begin = time.perf_counter()
            for _ in range(100):
                call()
            best[name] = min(best[name], (time.perf_counter() - begin) / 100)
    assert best["op"] - best["direct"] < 10e-6


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, mulosd.kernels as k; new = 'torch' in sys.modules; print(new, k.__name__)"
    before = run_python("import sys, mulosd; print('torch' in sys.modules)")
    assert run_python(code) == f"{before} mulosd.kernels"


def test_functions_win_over_folders_of_the_same_name() -> None:
    code = (
        "import mulosd.kernels.kv_write, mulosd.kernels.local_resample.reference\n"
        "from mulosd.kernels import kv_write, local_resample\n"
        "from mulosd.kernels.kv_write import kv_write as inner\n"
        "print(kv_write is inner, callable(local_resample))"
    )
    assert run_python(code) == "True True"


def test_every_public_name_resolves() -> None:
    import mulosd.kernels as kernels

    for name in kernels.__all__:
        assert getattr(kernels, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        kernels.no_such_name  # noqa: B018


def test_calls_references_and_schemas_name_the_same_arguments() -> None:
    registry.diagnose()  # imports every op
    for op in registry.OPS.values():
        names = list(inspect.signature(op.reference).parameters)
        assert list(op.call._fields) == names, op.name
        if not op.schema:
            continue
        declared = [a.name for a in getattr(torch.ops.mulosd, op.name).default._schema.arguments]
        assert declared == [*names, "backend"], op.name
