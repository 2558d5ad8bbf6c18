"""Which decoder draws where none is named: decided once, for engine, commands, servers and pipelines."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mulosd import MulosdPipeline
from mulosd.engine.decoding.default import applying, decoder_for, default_decoder, remark
from mulosd.engine.engine import Engine
from mulosd.engine.family import Family
from mulosd.engine.family_config import Calibration
from mulosd.engine.random_family import random_family


def family(*scales: int, upsampler: str = "latent", **config: object) -> Family:
    """A random family, calibrated for some scales."""
    made = random_family()
    found = [Calibration(scale, upsampler, pool=3, radius=1, tau=0.05) for scale in scales]
    made.config = replace(made.config, calibrations={c.key: c for c in found}, **config)  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (family(), "serial"),
        (family(4), "mulo"),
        (family(2), "serial"),  # its own scale is the largest
        (family(2, scale=2), "mulo"),
        (family(4, upsampler="pixel"), "serial"),
        (family(decoder="zipar:window=2"), "zipar"),
        (family(4, decoder="serial"), "serial"),
    ],
)
def test_the_default_of_a_family(made: Family, wanted: str) -> None:
    engine = Engine(made)
    assert default_decoder(made).partition(":")[0] == wanted
    assert decoder_for(made, None).name == wanted
    assert engine.resolve()[0].name == wanted
    drawn = [engine.generate("apple").stats[0], MulosdPipeline(engine)("apple", seed=0).stats[0]]
    assert [s and str(s.spelling).partition(":")[0] for s in drawn] == [wanted, wanted]


def test_who_names_no_decoder_is_told_where_mulo_is_missing() -> None:
    assert remark(family(4)) is None and remark(family(decoder="zipar")) is None
    said = remark(family())
    assert said is not None and "drawn with serial" in said and "mulo, product" in said and "calibrate`" not in said


def test_decoders_that_apply() -> None:
    reasons = applying(family())
    assert [name for name, reason in reasons.items() if reason] == ["eagle"]
    assert "mulosd train eagle" in reasons["eagle"]
