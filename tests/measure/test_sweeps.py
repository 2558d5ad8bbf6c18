"""Sweeps of knobs, and decoders as text."""

from __future__ import annotations

import pytest

from mulosd.engine.decoding import Jacobi, MuloSD, Serial, ZipAR
from mulosd.engine.decoding.spec import parse, spell
from mulosd.engine.random_family import random_family
from mulosd.measure.decode import plan_rows

FAMILY = random_family()
MULO = "mulo:scale=2:radius=1:pool=3"


@pytest.mark.parametrize(
    "decoder",
    [
        Serial(),
        Serial(8),
        ZipAR(2, zero_kv=True),
        Jacobi(window=3, coupled=False),
        MuloSD(scale=2, tau=1.8846273519557144e-07, upsampler="pixel", draft_window=2).changed(cascade=True),
    ],
)
def test_text_of_a_decoder_reads_as_itself(decoder: Serial) -> None:
    assert parse(spell(decoder)) == decoder
    assert type(parse(spell(decoder))) is type(decoder)


def test_an_open_knob_is_swept_and_a_stated_one_is_not() -> None:
    assert [r.settings()["window"] for r in plan_rows(FAMILY, ["zipar"])] == [1, 2, 4]
    assert [r.settings()["window"] for r in plan_rows(FAMILY, ["zipar:window=4"])] == [4]
    rows = plan_rows(FAMILY, ["serial", MULO, f"{MULO}:tau=0.5"], {"mulo": [0.1, 0.2, 0.1]})
    assert [r.settings().get("tau") for r in rows] == [None, 0.1, 0.2, 0.5]
    assert [r.settings()["window"] for r in plan_rows(FAMILY, ["zipar"], {"zipar": [3]})] == [3]


def test_impossible_sweeps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no sweep of serial.*mulo \(tau\)"):
        plan_rows(FAMILY, ["serial"], {"serial": [1]})
    with pytest.raises(ValueError, match="window of 'zipar' must be int"):
        plan_rows(FAMILY, ["zipar"], {"zipar": [1.5]})
    with pytest.raises(ValueError, match="at least one value of window"):
        plan_rows(FAMILY, ["zipar"], {"zipar": []})
    with pytest.raises(ValueError, match="not calibrated"):
        plan_rows(FAMILY, [MULO])
