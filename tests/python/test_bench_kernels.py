"""The benchmark of kernels: floors by hand, rows through CSV, wrong kernels refused, the command on a CPU."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from mulosd.cli import app
from mulosd.measure.ceilings import Ceilings
from mulosd.measure.kernels import OPS, bench_kernels, cases, floors, peers, report
from mulosd.measure.kernels.cases import Case, Problem
from mulosd.measure.machine import Machine
from mulosd.measure.rows import Row, read_json


def test_floors_of_the_published_table() -> None:
    """Microseconds of one layer on an H200, as worked out by hand from 4.8 TB/s and 790 TFLOP/s."""
    h200 = floors.DEVICES["H200"]
    for heads, dim, batch, length, queries, expected in [
        (20, 64, 2, 4096, 64, 8.9),
        (20, 64, 2, 1024, 32, 2.3),
        (20, 64, 2, 4096, 1024, 54.4),
        (24, 64, 16, 2048, 64, 43.3),
        (36, 128, 128, 4096, 256, 3132),
    ]:
        work = floors.attention(batch, heads, heads, dim, queries, length, 2)
        assert floors.floor_us(work, h200, 2) == pytest.approx(expected, rel=0.03)


def test_floors_by_counting() -> None:
    work = floors.attention(B=1, H=4, Hkv=2, D=8, Q=33, L=100, e=4)
    assert work.bytes == 2 * 100 * 2 * 8 * 4 + 2 * 33 * 4 * 8 * 4 + 33 * 2 * 4
    assert (work.flops, work.exps) == (4 * 4 * 33 * 100 * 8, 4 * 33 * 100)
    assert floors.split_bytes(B=1, H=4, D=8, Q=33, splits=3) == 2 * 3 * 4 * 33 * 9 * 4
    assert floors.sample(2, 10, 2, guided=True, noise=True).bytes == 2 * 10 * (2 + 2 + 4) + 16
    assert floors.sample(2, 10, 2, guided=False, noise=False).bytes == 2 * 10 * 2 + 16
    assert floors.nearest_code(3, 5, 8, 2).flops == 2 * 3 * 5 * 8
    assert floors.expand_islands(2, 4, 4).bytes == 32 * (1 + 1 + 4 + 4)
    assert floors.pooled_mass(2, 10, 3, 2, guided=False).bytes == 40 + 2 * 3 * 4 + 2 * (8 + 4 + 1)
    plain = floors.kv_write(1, 2, 3, 3, 8, 2, 2, rotary=False)
    assert plain.bytes == 2 * 3 * 8 * 8 + 16
    assert floors.limits_of("NVIDIA H200") is floors.DEVICES["H200"]
    assert floors.limits_of("cpu") is None
    assert floors.floor_us(work, None, 2) is None


def case(error: float, run: Callable[[], Any] = lambda: None, peer: Callable[[], Any] | None = None) -> Case:
    problem = Problem(lambda _: run, lambda _: error, 0.1, {} if peer is None else {"rival": peer})
    return Case("kv_write", "toy", torch.float32, floors.Work(1e3, 1e3), lambda _: problem)


@pytest.mark.parametrize("error", [0.2, math.inf, math.nan])
def test_a_wrong_kernel_is_not_timed(error: float) -> None:
    calls: list[int] = []
    wrong = case(error, lambda: calls.append(1))
    (row,) = bench_kernels(backends=["torch"], cases=[wrong], quick=True)
    assert row.what["status"] == "failed"
    assert "median_us" not in row.values
    assert "not timed" in row.what["note"]
    json.dumps(report.as_report([row]), allow_nan=False)
    assert len(calls) == 1
    assert report.reasons([row])[0].startswith("FAILED")
    (row,) = bench_kernels(backends=["torch"], cases=[case(0.1, lambda: calls.append(1))], quick=True)
    assert (row.what["status"], row.values["max_error"]) == ("ok", 0.1)
    assert len(calls) > 5


def test_a_kernel_that_raises_fails_and_a_peer_that_cannot_is_skipped() -> None:
    def broken() -> None:
        raise RuntimeError("boom\nmore")

    def absent() -> Any:
        raise peers.Unavailable("only on the moon")

    first, second = bench_kernels(backends=["torch", "peers"], cases=[case(0.0, broken, absent)], quick=True)
    assert (first.what["status"], first.what["note"]) == ("failed", "RuntimeError: boom")
    assert (second.what["status"], second.what["note"]) == ("skipped", "only on the moon")


@pytest.mark.parametrize("index", range(8))
def test_every_oracle_sees_a_wrong_result(index: int) -> None:
    """The error of a right result is within the tolerance, and that of one spoilt in a single place is not."""
    small = [
        cases.attention(2, 2, 8, 3, 40, torch.float32),
        cases.kv_write(2, 2, 8, 3, 10, torch.float32),
        cases.linear(3, 20, 12, torch.float32, gated=True),
        cases.linear(3, 20, 12, torch.float32, quantised=True),
        cases.sample(3, 50, 5, torch.float32),
        cases.pooled(3, 50, 4, torch.float32),
        cases.nearest(3, 50, 4, torch.float32),
        cases.islands(1, 9, 2),
    ][index]
    problem = small.make(torch.device("cpu"))
    result = problem.run("torch")()
    whole = result[2] if small.op == "expand_islands" else result
    spoilt = whole.clone(memory_format=torch.contiguous_format)  # flatten must not copy
    assert problem.error(result) <= problem.tolerance
    if small.op in ("local_resample", "nearest_code"):
        spoilt[1] = (spoilt[1] + 1) % 50
    elif small.op == "pooled_mass":
        spoilt[1] += 0.01
    else:
        spoilt.flatten()[-1] += 1
    result = problem.run("torch")()
    assert problem.error((*result[:2], spoilt) if small.op == "expand_islands" else spoilt) > problem.tolerance
    for name, build in problem.peers.items():
        try:
            call = build()
        except peers.Unavailable:
            continue
        if name not in ("sdpa-efficient", "sdpa-cudnn"):
            assert problem.error(call()) <= problem.tolerance, name


def test_flex_attention_gives_what_the_oracle_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention without its compiler, which is what a CPU can run."""
    monkeypatch.setattr(peers, "need_gpu", lambda _: None)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    problem = cases.attention(2, 2, 16, 5, 40, torch.float32).make(torch.device("cpu"))
    assert problem.error(problem.peers["flex"]()()) <= problem.tolerance


class FakeFlashInfer:
    """The part of FlashInfer 0.2.3 and later that the peers use, by its documented signatures."""

    class BatchPrefillWithRaggedKVCacheWrapper:
        def __init__(self, float_workspace_buffer: Tensor, kv_layout: str = "NHD") -> None:
            assert kv_layout == "NHD"

        def plan(
            self,
            qo_indptr: Tensor,
            kv_indptr: Tensor,
            num_qo_heads: int,
            num_kv_heads: int,
            head_dim_qk: int,
            head_dim_vo: int | None = None,
            custom_mask: Tensor | None = None,
            q_data_type: torch.dtype = torch.float16,
            kv_data_type: torch.dtype | None = None,
        ) -> None:
            assert custom_mask is not None and custom_mask.dtype == torch.bool and custom_mask.dim() == 1
            assert qo_indptr.dtype == kv_indptr.dtype == torch.int32
            self.rows, self.keys, self.mask = qo_indptr.tolist(), kv_indptr.tolist(), custom_mask

        def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            """Request by request; the masks [queries, keys] of all lie one after the other."""
            parts, at = [], 0
            for b in range(len(self.rows) - 1):
                i, j = slice(*self.rows[b : b + 2]), slice(*self.keys[b : b + 2])
                rows, keys = i.stop - i.start, j.stop - j.start
                mask = self.mask[at : at + rows * keys].view(rows, keys)
                at += rows * keys
                scores = torch.einsum("qhd,khd->hqk", q[i], k[j]) * q.shape[-1] ** -0.5
                weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
                parts.append(torch.einsum("hqk,khd->qhd", weights, v[j]))
            assert at == len(self.mask)
            return torch.cat(parts)

    class sampling:
        @staticmethod
        def top_k_top_p_sampling_from_logits(logits: Tensor, top_k: int, top_p: float) -> Tensor:
            assert logits.dtype == torch.float32 and top_p == 1.0
            return logits.topk(top_k, dim=1).indices[:, -1].int()

        @staticmethod
        def sampling_from_logits(logits: Tensor) -> Tensor:
            assert logits.dtype == torch.float32
            return logits.argmin(dim=1).int()


def test_flashinfer_is_called_by_its_signatures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "need_flashinfer", lambda _: FakeFlashInfer)
    for case in (
        cases.attention(2, 2, 16, 5, 40, torch.float32),
        cases.sample(3, 50, 5, torch.float32),
        cases.sample(3, 50, 0, torch.float32),
    ):
        problem = case.make(torch.device("cpu"))
        assert problem.error(problem.peers["flashinfer"]()()) <= problem.tolerance, case.shape


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="unknown op x; possible: verify_attention"):
        bench_kernels(["x"])
    with pytest.raises(ValueError, match="unknown backend y"):
        bench_kernels(backends=["y"])
    with pytest.raises(ValueError, match="cpu or cuda"):
        bench_kernels(device="meta")


def test_quick_command(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("rows.json", "rows.csv")]
    options = ["--op", "expand_islands", "--op", "kv_write", "--json", str(files[0]), "--csv", str(files[1])]
    done = CliRunner().invoke(app, ["bench", "kernels", "--quick", *options])
    assert done.exit_code == 0, done.output
    assert "expand_islands" in done.output
    rows = read_json(files[0])
    with files[1].open(newline="") as file:
        records = list(csv.DictReader(file))
    assert {"p20_us", "median_us", "p80_us", "device", "versions", "commit", "date"} <= set(records[0])
    assert [r["median_us"] for r in records] == [str(row.values.get("median_us", "")) for row in rows]
    assert all(row.machine.device and "torch" in row.machine.versions and row.machine.date for row in rows)
    assert {row.what["op"] for row in rows} == {"expand_islands", "kv_write"}
    timed = report.timed(rows)
    assert {"torch", "complex+index_put"} <= {row.what["backend"] for row in timed}
    assert all(row.values["p20_us"] <= row.values["median_us"] <= row.values["p80_us"] for row in timed)
    assert all(row.values["floor_share"] > 0 for row in timed)
    held = Ceilings.from_dict(json.loads(files[0].read_text())["ceilings"])
    assert str(held.processor) in done.output and "Measured ceilings" in done.output
    assert rows[0].machine.device.startswith(held.processor)
    skipped = [row for row in rows if row.what["backend"] == "cuda"]
    assert all(row.what["status"] == "skipped" and row.what["note"] for row in skipped)


def test_failure_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "cases", lambda device, quick: [case(1.0)])
    done = CliRunner().invoke(app, ["bench", "kernels", "--quick", "--backend", "torch"])
    assert done.exit_code == 1
    assert "FAILED kv_write toy by torch" in done.output


def test_mistakes_are_told(tmp_path: Path) -> None:
    for options, message in [
        (["--op", "x"], "unknown op"),
        (["--plot", str(tmp_path / "a.txt")], ".png"),
        (["--csv", str(tmp_path / "no" / "a.csv")], "directory"),
    ]:
        done = CliRunner().invoke(app, ["bench", "kernels", *options])
        assert done.exit_code == 2
        assert message in done.output


def row(op: str, backend: str, median: float | None) -> Row:
    what = {"op": op, "shape": "toy", "dtype": "float32", "backend": backend, "note": ""}
    values = {f"{name}_us": median for name in ("median", "p20", "p80")} if median else {}
    return Row({**what, "status": "ok" if median else "failed"}, values, machine=Machine("a device", {}))


def test_bars(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [row("kv_write", "torch", 1.0), row("nearest_code", "flex", 23456.0), row("nearest_code", "cuda", 99.4)]
    report.plot_kernels(rows, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    # A comment beside the outlines holds each text of the plot.
    for label in ("23,456", "99.4", "toy  flex", "cuda", "peer"):
        assert f"<!-- {label} -->" in text
    assert "<!-- triton -->" not in text
    with pytest.raises(ValueError, match="nothing was timed"):
        report.plot_kernels([row("kv_write", "torch", None)], tmp_path / "b.png")
    assert len(OPS) == 7


def test_tables_compare_with_the_fastest() -> None:
    rows = [row("kv_write", "torch", 3.0), row("kv_write", "cuda", 2.0), row("nearest_code", "torch", None)]
    (shown,) = report.kernel_tables(rows)
    assert list(shown.columns[-1].cells) == ["1.50", "1.00"]
