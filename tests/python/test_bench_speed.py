"""Throughput and synthetic benchmarks: the loops of others are right, planted rejections are as wanted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mulosd.engine.decoding import MuloSD, Serial, ZipAR
from mulosd.engine.engine import Engine
from mulosd.engine.random_family import random_family
from mulosd.engine.request import Request
from mulosd.engine.sampling import Logits, SamplingParams
from mulosd.engine.scheduler import SchedulerConfig
from mulosd.measure.kernels import floors
from mulosd.measure.speed.architectures import ARCHITECTURES, random_weights
from mulosd.measure.speed.metered import Metered
from mulosd.measure.speed.planted import Planted
from mulosd.measure.speed.static_loops import CompiledLoop, ReferenceLoop, StaticLoop
from mulosd.measure.speed.synthetic import bench_synthetic, conditions, run_alone, synthetic_table
from mulosd.measure.speed.throughput import Cell, bench_throughput, closed_loop, throughput_table

SAMPLINGS = [SamplingParams(temperature=0), SamplingParams(cfg_scale=2.0, temperature=0)]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(random_family(seed=3), config=SchedulerConfig(max_running=4))


def features(engine: Engine, params: SamplingParams) -> torch.Tensor:
    with torch.inference_mode():
        found = engine.family.features(["red apple"])
        return torch.cat([found, engine.family.null_features(1)]).clone() if params.guided else found.clone()


@pytest.mark.parametrize("params", SAMPLINGS, ids=["plain", "guided"])
def test_greedy_static_loops_are_serial_decoding(engine: Engine, params: SamplingParams) -> None:
    expected = engine.generate("red apple", decoder=Serial(), sampling=params).tokens.flatten()
    for kind in (StaticLoop, ReferenceLoop):
        loop = kind(engine.family.ar, 8, features(engine, params), params)
        assert torch.equal(loop.generate(0), expected), kind.__name__
        assert torch.equal(loop.generate(1), expected), "what stands in the cache from the last image is not seen"


@pytest.mark.slow
@pytest.mark.gpu
def test_greedy_compiled_loop_is_serial_decoding() -> None:
    engine = Engine(random_family(seed=3), device="cuda", dtype="float32")
    params = SAMPLINGS[1]
    expected = engine.generate("red apple", decoder=Serial(), sampling=params).tokens.flatten()
    loop = CompiledLoop(engine.family.ar, 8, features(engine, params), params)
    assert torch.equal(loop.generate(0).cpu(), expected)


def test_static_loops_sample_what_is_left_after_top_k_and_top_p(engine: Engine) -> None:
    logits = torch.tensor([[0.0, 3.0, 2.0, 1.0]])
    whole = engine.family.ar
    for kind in (ReferenceLoop, CompiledLoop):
        for params, allowed in (
            (SamplingParams(top_k=2), {1, 2}),
            (SamplingParams(top_p=0.7), {1, 2}),
            (SamplingParams(top_p=0.6), {1}),
            (SamplingParams(), {0, 1, 2, 3}),
        ):
            loop = kind(whole, 8, features(engine, params), params)
            torch.manual_seed(0)
            # The rarest of four has probability 0.032: 200 draws miss it with probability 0.0015.
            assert {int(loop.draw(logits)) for _ in range(200)} == allowed


def test_planted_rejections_have_the_wanted_share_and_the_same_places_whatever_the_decoder() -> None:
    family = random_family()
    engine = Engine(family)
    plain = MuloSD(scale=2)
    decoders = [Planted.of(plain, 0.8), Planted.of(MuloSD(scale=2, window=2, draft_window=2), 0.8)]
    shares: list[list[float]] = [[], []]
    for seed in range(3):
        for decoder, found in zip(decoders, shares, strict=True):
            request = Request(family, features(engine, SamplingParams()), seed, SamplingParams())
            found.append(run_alone(engine, request, decoder.resolve(family)).stats.rejection)
    assert shares[0] == shares[1]
    assert len(set(shares[0])) > 1, "other seeds, other places"
    n, request = 2560, Request(family, features(engine, SamplingParams()), 9, SamplingParams())
    logits, tokens = Logits(torch.zeros(n, 24), None), torch.zeros(n, dtype=torch.int64)
    accepted = decoders[0].accept(request, logits, tokens, family.neighbours(3), range(n))
    # The standard error is 0.008.
    assert float(accepted.float().mean()) == pytest.approx(0.8, abs=0.03)
    part = decoders[0].accept(request, logits[5:9], tokens[5:9], family.neighbours(3), range(5, 9))
    assert torch.equal(part, accepted[5:9])
    with pytest.raises(ValueError, match="share from 0 to 1"):
        Planted.of(plain, 1.5)


@pytest.mark.parametrize("accepted", [0.0, 1.0])
def test_the_ends_of_planting_are_those_of_tau(accepted: float, engine: Engine) -> None:
    tau = MuloSD(scale=2, tau=0.0 if accepted else 2.0, radius=1, pool=3)
    expected = engine.generate("red apple", decoder=tau, seed=5).tokens
    assert torch.equal(engine.generate("red apple", decoder=Planted.of(tau, accepted), seed=5).tokens, expected)


def test_work_of_a_forward_by_counting(engine: Engine) -> None:
    work = floors.forward(layers=2, dim=8, H=2, D=4, ffn=12, V=10, B=2, Q=3, L=20, logits=2, e=4)
    blocks = 2 * (4 * 8 * 8 + 3 * 8 * 12)
    assert work.bytes == 4 * (blocks + 80) + 2 * 2 * 2 * 20 * 2 * 4 * 4
    assert work.flops == 2 * 6 * blocks + 2 * 2 * 80 + 2 * 4 * 2 * 2 * 3 * 20 * 4
    # XL in bf16, a guided pair, one token: 328 µs on an H200 with 1,024 slots, of which 263 are weights (AR-DTok).
    a = ARCHITECTURES["ar-dtok-512"]
    work = floors.forward(a.layers, a.dim, a.heads, 64, a.ffn, a.vocab, B=2, Q=1, L=1024, logits=2, e=2)
    assert floors.floor_us(work, floors.DEVICES["H200"], 2) == pytest.approx(328, rel=0.02)

    metered = Metered(ZipAR(window=2).resolve(engine.family))
    params = SamplingParams()
    request = Request(engine.family, features(engine, params), 0, params)
    run_alone(engine, request, metered)
    assert len(metered.works) == sum(request.recorder.stats.forwards.values())
    c = engine.family.ar.config
    last = floors.forward(
        c.n_layers, c.dim, c.n_heads, c.head_dim, c.ffn_dim, c.vocab_size, B=1, Q=1, L=c.cond_len + 63, logits=1, e=4
    )
    assert metered.works[-1] == last, "the last forward feeds the token before the last"


@pytest.mark.parametrize(
    ("name", "millions"),
    [("llamagen-b", 112.5), ("llamagen-xl", 775), ("ar-dtok-512", 655), ("tiny", 5.4)],
)
def test_architectures_have_the_published_sizes(name: str, millions: float) -> None:
    with torch.device("meta"):
        family = random_weights(name, device="meta")
    assert family.parameters()["ar"] / 1e6 == pytest.approx(millions, rel=0.02)
    assert family.grids == tuple(ARCHITECTURES[name].grid // r for r in (4, 2, 1))


@pytest.mark.parametrize("arch", ["llamagen-b", "ar-dtok-512"])
def test_static_loops_know_every_kind_of_model(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(ARCHITECTURES[arch], layers=2, heads=2, ffn=64, cond_len=5, cond_dim=16, vocab=50)
    monkeypatch.setitem(ARCHITECTURES, arch, small)
    engine = Engine(random_weights(arch, 8))
    params = SAMPLINGS[1]
    given = conditions(engine, params.guided).clone()
    request = Request(engine.family, given, 0, params)
    expected = run_alone(engine, request, Serial().resolve(engine.family)).tokens.flatten()
    assert len(expected.unique()) > 1
    assert torch.equal(ReferenceLoop(engine.family.ar, 8, given, params).generate(0), expected)


def test_a_collapsed_prefix_is_timed_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for arch in ("llamagen-b", "ar-dtok-512"):
        small = replace(ARCHITECTURES[arch], layers=1, heads=1, ffn=64, cond_len=5, cond_dim=16, vocab=50)
        monkeypatch.setitem(ARCHITECTURES, arch, small)
    options: dict[str, Any] = {
        "grid": 4,
        "decoders": ["serial"],
        "images": 1,
        "bandwidth": 1e9,
        "collapse_prefix": True,
    }
    eager, serial = bench_synthetic("llamagen-b", baselines=["eager"], **options)["rows"]
    assert eager["forwards"] == {"prefill": 1, "serial": 15} and serial["forwards"] == {"serial": 15}
    assert serial["floor"]["seconds"] < eager["floor"]["seconds"]
    with pytest.raises(ValueError, match="collapse_prefix"):
        bench_synthetic("ar-dtok-512", baselines=[], **options)


def test_synthetic_rows_are_marked_and_compared() -> None:
    decoders = ["serial", "zipar:window=2", "mulo:scale=2:window=2:draft_window=2"]
    report = bench_synthetic(
        "tiny", grid=8, decoders=decoders, baselines=["eager"], accept=0.9, images=1, top_k=9, bandwidth=1e9
    )
    json.dumps(report, allow_nan=False)
    eager, serial, zipar, mulo = report["rows"]
    assert report["synthetic"] and all(row["synthetic"] for row in report["rows"])
    assert eager["forwards"] == {"prefill": 1, "serial": 63}
    assert serial["forwards"]["serial"] == 63
    assert mulo["settings"]["accepted"] == 0.9
    assert 0 < mulo["rejection"] < 0.4
    assert serial["speedup"]["serial"] == 1.0
    assert eager["speedup"]["eager"] == 1.0
    assert zipar["floor"]["seconds"] < serial["floor"]["seconds"]
    assert eager["floor"]["seconds"] == pytest.approx(serial["floor"]["seconds"], rel=0.05)
    for row in report["rows"]:
        floor, seconds = row["floor"], row["seconds_per_image"]["median"]
        assert floor["share"] == pytest.approx(floor["seconds"] / seconds)


def test_a_closed_loop_keeps_its_requests_in_flight(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[int] = []
    step = engine.step

    def watched() -> list[Any]:
        running.append(len(engine.scheduler.running) + len(engine.scheduler.waiting))
        return step()

    monkeypatch.setattr(engine, "step", watched)
    cell = Cell(Serial().resolve(engine.family), 3)
    closed_loop(engine, cell, ["apple", "pear"], 4, 0, 0)
    assert set(running) == {3}
    assert len(cell.latencies) == 6, "raised to a multiple of the batch"
    assert not engine.busy, "what is left over is dropped"
    assert cell.forwards == [cell.forwards[0]] * 6
    running.clear()
    closed_loop(engine, cell, ["apple"], 3, 5, 0)
    assert running[:11] == [1] * 5 + [2] * 5 + [3]


def test_throughput_rows(engine: Engine) -> None:
    decoders = [Serial().resolve(engine.family), ZipAR(window=2).resolve(engine.family)]
    report = bench_throughput(engine, ["apple"], decoders, [1, 2], images=2, rounds=2)
    json.dumps(report, allow_nan=False)
    assert [(row["decoder"], row["batch"]) for row in report["rows"]] == [
        ("serial", 1), ("serial", 2), ("zipar", 1), ("zipar", 2),
    ]  # fmt: skip
    for row in report["rows"]:
        assert row["latency"]["p50"] <= row["latency"]["p90"] <= row["latency"]["p99"]
        assert row["latency"]["images"] == 4
        assert row["images_per_second"]["runs"] == 2
        assert row["gain"] > 0
    assert [row["gain"] for row in report["rows"]][::2] == [1.0, 1.0]
    with pytest.raises(ValueError, match="max_running=9"):
        bench_throughput(engine, ["apple"], decoders, [9])


def test_kept_reports_still_make_tables() -> None:
    kept = Path(__file__).parents[2] / "benchmarks" / "results"
    for name, tabulate in (
        ("synthetic_tiny_cpu", synthetic_table),
        ("synthetic_llamagen-b_cpu", synthetic_table),
        ("throughput_cpu", throughput_table),
    ):
        report = json.loads((kept / f"{name}.json").read_text())
        table = tabulate(report)
        assert table.row_count == len(report["rows"])
        assert {"serial"} <= {str(cell) for cell in table.columns[0].cells}
        assert "-" not in table.columns[1].cells, "every row has its first figure"


def test_commands(run: Callable[..., Any], tmp_path: Path) -> None:
    options = ("--grid", 8, "--images", 1, "--decoder", "serial", "--bandwidth", 9, "--json", "s.json")
    result = run("bench", "synthetic", "--arch", "tiny", *options)
    assert result.exit_code == 0, result.output
    assert "SYNTHETIC" in result.stdout
    assert json.loads(Path("s.json").read_text())["rows"][1]["decoder"] == "serial"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["synthetic", "--arch", "gpt"], "llamagen-xl"),
        (["synthetic", "--arch", "tiny", "--accept", "2"], "--accept"),
        (["synthetic", "--arch", "tiny", "--baselines", "vllm"], "eager, compiled"),
        (["synthetic", "--arch", "tiny", "--grid", "6"], "multiple of 4"),
        (["throughput", "--batch", "1,x"], "--batch"),
        (["throughput", "--images", "0"], "--images"),
        (["throughput", "--decoder", "magic"], "draft-only"),
        (["ablations", "--only", "colour"], "upsampler"),
        (["ablations", "--decoder", "serial"], "--decoder"),
        (["decode", "--sweep", "zipar"], "--sweep"),
        (["decode", "--plot", "a.jpg"], ".svg"),
        (["plot", "absent.json", "a.png"], "absent.json"),
    ],
)
def test_mistakes(fails: Callable[..., str], arguments: list[str], word: str) -> None:
    assert word in fails("bench", *arguments)
