"""Ablations change one setting at a time, and every row can be measured again by its spec."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mulosd.engine.decoding import MuloSD, Serial
from mulosd.engine.decoding.spec import parse, spell
from mulosd.engine.engine import Engine
from mulosd.engine.random_family import random_family
from mulosd.eval.ablations import ABLATIONS, ablation_rows, bench_ablations, plan_ablations

BASE = MuloSD(scale=4, tau=0.02, radius=1, pool=3, upsampler="latent")
PROMPTS = ["red apple", "blue pear", "apple", "pear"]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(random_family())


def test_variants_differ_from_the_base_in_one_setting(engine: Engine) -> None:
    plan = plan_ablations(engine.family, BASE)
    assert list(plan) == list(ABLATIONS)
    for name, variants in plan.items():
        base = BASE.settings()
        changed = [{k for k, v in decoder.settings().items() if v != base[k]} for decoder in variants.values()]
        assert all(len(keys) <= 1 for keys in changed), name
        # Two settings say how a draft is drawn; everything else has one.
        assert len(set().union(*changed)) == (2 if name == "drafting" else 1), name
        assert len(set(variants.values())) == len(variants) > 1
        for decoder in variants.values():
            assert decoder.resolve(engine.family) == decoder
            assert parse(spell(decoder)) == decoder
    assert [d.rows_per_cycle for d in plan["rows"].values()] == [4, None]
    assert list(plan_ablations(engine.family, replace(BASE, scale=2))["rows"]) == ["2 rows", "4 rows", "one shot"]


def test_what_a_family_has_not_is_left_away(engine: Engine) -> None:
    assert "cascade" not in plan_ablations(engine.family, replace(BASE, scale=2))
    with pytest.raises(ValueError, match="none of cascade"):
        plan_ablations(engine.family, replace(BASE, scale=2), ["cascade"])
    with pytest.raises(ValueError, match="choose from rejection, matched, radius"):
        plan_ablations(engine.family, BASE, ["colour"])


def test_rows_have_their_variants_and_the_wanted_rejection(engine: Engine) -> None:
    base = replace(BASE, tau=None)
    report = bench_ablations(engine, PROMPTS, base, ["radius", "pool", "rejection"], rejection=0.2, timing_images=1)
    rows = {row["spec"]: row for row in report["rows"]}
    assert rows.keys() == {spell(parse(spec)) for spec in rows}
    assert rows["serial:grid=8"]["ablations"] == {}
    assert rows[report["base"]]["ablations"] == {"radius": "1", "rejection": "local + expansion"}
    by = dict(ablation_rows(report))
    assert list(by)[:2] == [Serial.name, "draft-only"]
    coverage = [by[f"radius: {radius}"]["coverage"] for radius in range(5)]
    assert coverage == sorted(coverage) and coverage[0] < coverage[-1]
    assert by["rejection: naive local"]["coverage"] == pytest.approx(by["rejection: naive local"]["rejection"])
    assert by["rejection: raster"]["coverage"] >= by["rejection: local + expansion"]["coverage"]
    # Calibrated on these very prompts, though with other seeds: 256 tokens of a share of 0.2.
    for name in ("pool: 1", "pool: 10"):
        assert by[name]["rejection"] == pytest.approx(0.2, abs=0.12)
    assert by["pool: 1"]["settings"]["tau"] < by["pool: 10"]["settings"]["tau"]
    fixed = bench_ablations(engine, PROMPTS[:1], BASE, ["radius"], timing_images=1)
    assert {row["settings"].get("tau", 0.02) for row in fixed["rows"]} == {0.02}
    assert fixed["wanted_rejection"] is None


def test_kinds_of_rejection_are_compared_at_the_same_number_of_forwards(engine: Engine) -> None:
    base = replace(BASE, scale=2, window=1)
    how = {"rejection": 0.1, "timing_images": 1, "calibration_prompts": PROMPTS * 4}
    report = bench_ablations(engine, PROMPTS, replace(base, tau=None), ["matched"], **how)
    by = {row["ablations"]["matched"]: row for row in report["rows"] if row["ablations"]}
    assert by.keys() == {"raster", "naive local", "local + expansion"}
    taus = {name: row["settings"]["tau"] for name, row in by.items()}
    assert taus["raster"] < taus["local + expansion"] < taus["naive local"]
    given = bench_ablations(engine, PROMPTS, replace(base, tau=0.02), ["matched"], **how)
    assert given["base"] == spell(replace(base, tau=0.02))
