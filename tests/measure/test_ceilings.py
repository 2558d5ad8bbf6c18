"""What a CPU can do at most, and the floors of images that are worked out by it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from mulosd.engine.decoding import DraftOnly, MuloSD, Serial
from mulosd.engine.decoding.base import Decoder
from mulosd.engine.engine import Engine
from mulosd.engine.family import Family
from mulosd.engine.random_family import random_family
from mulosd.engine.stats import GenerationStats
from mulosd.measure import ceilings as module
from mulosd.measure.ceilings import MIB, SIZES, Ceilings, Product, Read, measured_ceilings
from mulosd.measure.image_floor import ceilings_of, image_floor, model_of, weights_of
from mulosd.measure.kernels.floors import Limits, Work, floor_us

GIVEN = Ceilings(
    "a CPU",
    {"torch": "AVX2", "native": "none"},
    1,
    # The second buffer is read faster than the first, as happens where the call itself takes time.
    (Read(100, 40.0), Read(1000, 50.0), Read(10_000, 20.0)),
    (Product("float32", 64, 8, 8, 300.0, "torch"), Product("float32", 256, 8, 8, 400.0, "onednn"),
     Product("bfloat16", 64, 8, 8, 100.0, "torch")),
)  # fmt: skip


@pytest.fixture(scope="module")
def family() -> Family:
    return random_family((4, 8))


def test_bandwidth_falls_and_floors_rise_with_what_is_read() -> None:
    sizes = (1, 100, 999, 1000, 5000, 10_000, 1_000_000)
    assert [GIVEN.bandwidth(size) for size in sizes] == [50, 50, 50, 50, 50, 20, 20]
    floors = [size / GIVEN.bandwidth(size) for size in sizes]
    assert floors == sorted(floors)


def test_narrow_products_can_be_widened() -> None:
    assert (GIVEN.flops(4), GIVEN.flops(2), GIVEN.flops(1)) == (400, 400, 400)
    units = replace(GIVEN, gemm=(*GIVEN.gemm, Product("bfloat16", 256, 8, 8, 900.0, "onednn")))
    assert (units.flops(4), units.flops(2), units.flops(1)) == (400, 900, 900)


def test_what_is_measured_survives_json_and_says_what_it_is_of() -> None:
    found = measured_ceilings([3 * MIB, 0, 2 * SIZES[-1]])
    assert [r.bytes for r in found.read] == sorted([*SIZES, 3 * MIB]), "beyond the largest nothing is read"
    assert {p.dtype for p in found.gemm} == {"float32", "bfloat16"}
    assert found.threads == torch.get_num_threads()
    assert Ceilings.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found
    text = str(found)
    assert found.processor in text and "3 MiB" in text and f"{found.threads} thread" in text
    assert measured_ceilings([3 * MIB, 0, 2 * SIZES[-1]]) == found, "once a process"


def test_products_that_would_take_too_long_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PRODUCT_SECONDS", 0.0)
    assert [(p.m, p.n, p.k) for p in module.products.__wrapped__(torch.float32, 1)] == [module.SHAPES[0]]


def test_the_floor_of_a_call_is_by_the_ceiling_that_is_tighter() -> None:
    limits = Limits(GIVEN.bandwidth(1000), GIVEN.flops(2), GIVEN.flops(4), float("inf"))
    assert floor_us(Work(1000, 400), limits, 4) == pytest.approx(1e6 * 20)
    assert floor_us(Work(1000, 80_000, exps=1e9), limits, 4) == pytest.approx(1e6 * 200)


def stats(forwards: dict[str, int], fed: dict[str, int]) -> GenerationStats:
    return GenerationStats("any", {}, 0, forwards=forwards, fed=fed)


def floor(family: Family, decoder: Decoder, one: GenerationStats, guided: bool = False) -> dict[str, float]:
    found = decoder.resolve(family)
    return image_floor(Engine(family), found, [one, one], GIVEN, guided=guided, seconds=1e9)


def test_a_step_of_few_tokens_reads_and_a_long_one_multiplies(family: Family) -> None:
    held = weights_of(family.ar)
    assert held.bytes == 4 * (held.layers + held.head) and held.head == family.ar.output.weight.numel()
    read = held.bytes / GIVEN.bandwidth(held.bytes)
    steps = floor(family, Serial(), stats({"serial": 10}, {"serial": 10}))
    assert steps["seconds"] == pytest.approx(10 * read)
    assert steps["share"] == pytest.approx(steps["seconds"] / 1e9)
    whole = floor(family, Serial(), stats({"serial": 1}, {"serial": 1000}))
    assert whole["seconds"] == pytest.approx(2 * (1000 * held.layers + held.head) / GIVEN.flops(4))
    assert whole["seconds"] == whole["products"] > whole["weights"] == pytest.approx(read)
    assert floor(family, Serial(), stats({"serial": 1}, {"serial": 1000}), guided=True)["seconds"] == pytest.approx(
        2 * whole["seconds"]
    )
    both = floor(family, Serial(), stats({"serial": 11}, {"serial": 1010}))
    assert both["seconds"] <= steps["seconds"] + whole["seconds"], "a mean of forwards is a lower bound"


def test_narrow_weights_have_a_lower_floor() -> None:
    def bytes_of(**how: str) -> int:
        return weights_of(Engine(random_family((4, 8)), **how).family.ar).bytes

    exact, narrow = bytes_of(), bytes_of(dtype="bfloat16")
    head = 4 * random_family((4, 8)).ar.output.weight.numel()
    assert narrow == exact / 2
    assert bytes_of(quantization="int8") - head < (exact - head) / 2


def test_a_verify_pass_of_its_own_type_is_counted_in_it(family: Family) -> None:
    decoder = MuloSD(scale=2, tau=0.1, radius=0, pool=1)
    one = stats({"verify": 1}, {"verify": 1})
    exact, narrow = (floor(family, replace(decoder, verify_dtype=kind), one) for kind in (None, "bfloat16"))
    assert narrow["seconds"] < exact["seconds"]


def test_a_role_is_of_the_model_of_its_grid() -> None:
    small, large = random_family((4,)), random_family((8,))
    family = Family(large.config, large.tokenizer, large.conditioner, [small.ar, large.ar], {})
    mulo = MuloSD(scale=2, tau=0.1, radius=0, pool=1, upsampler="pixel").resolve(family)
    assert model_of(family, mulo, "verify") is large.ar and model_of(family, mulo, "resample") is large.ar
    draft = DraftOnly(scale=2, upsampler="pixel").resolve(family)
    assert model_of(family, draft, "draft") is small.ar
    assert model_of(family, Serial().resolve(family), "serial") is large.ar


def test_a_gpu_has_no_measured_ceilings() -> None:
    class Elsewhere:
        class family:
            device = "cuda"

    assert ceilings_of([Elsewhere]) is None  # type: ignore[list-item]
