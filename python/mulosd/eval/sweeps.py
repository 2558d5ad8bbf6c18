"""Which decoders a benchmark measures: names become settings, and a name that leaves its knob open becomes a sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from typing import TYPE_CHECKING

from ..engine.decoding.base import Decoder
from ..engine.decoding.draft_only import DraftOnly
from ..engine.decoding.mulo import MuloSD
from ..engine.decoding.spec import DECODERS as SPECS
from ..engine.decoding.spec import parse

if TYPE_CHECKING:
    from ..engine.family import Family

DECODERS = ("serial", "draft-only", "mulo", "zipar")
LARGEST_TAU = 0.05
TAUS = 4


def thresholds(decoder: Decoder, family: Family) -> list[float]:
    """Four values of tau, evenly apart in the logarithm: from the calibrated one to 0.05, or to 4 times it."""
    tau = getattr(decoder.resolve(family), "tau", None) or 0.0
    if tau <= 0:
        return [0.0]
    step = log(max(LARGEST_TAU, 4 * tau) / tau) / (TAUS - 1)
    # Three digits say as much and can be typed; the calibrated value itself stays as it is.
    return [tau, *(float(f"{tau * exp(step * i):.3g}") for i in range(1, TAUS))]


def windows(decoder: Decoder, family: Family) -> list[float]:
    """Powers of two below the width of the target grid; from there on a window is serial decoding."""
    return [w for w in (1, 2, 4, 8, 16) if w < family.grids[-1]]


@dataclass(frozen=True)
class Knob:
    """The setting by which a decoder trades quality for speed, and the values of it that a sweep takes."""

    setting: str
    kind: type
    values: Callable[[Decoder, Family], Sequence[float]]


KNOBS = {
    "mulo": Knob("tau", float, thresholds),
    "zipar": Knob("window", int, windows),
}


def plan_rows(
    family: Family,
    decoders: Sequence[str] = DECODERS,
    sweeps: Mapping[str, Sequence[float]] | None = None,
    mulo: MuloSD | None = None,
) -> list[Decoder]:
    """The decoders of a benchmark, every setting resolved.

    Args:
        family: to be decoded.
        decoders: as `decoding.parse` reads them, such as "zipar:window=4". One that does not state its knob
            (`KNOBS`) is swept over it; `tau=none` states it and takes the calibrated one.
        sweeps: values of the knobs by the decoder's name; what is left out takes those of `KNOBS`.
        mulo: the other settings of a plain "mulo"; a plain "draft-only" shares its scale and up-sampler.

    Raises:
        ValueError: no or unknown names, an empty list of values, or a setting that the family lacks.
    """
    if not decoders:
        raise ValueError(f"decoders must be chosen from {', '.join(SPECS)}, got none")
    given = sweeps or {}
    unknown = [name for name in given if name not in KNOBS]
    if unknown:
        knobs = ", ".join(f"{name} ({knob.setting})" for name, knob in KNOBS.items())
        raise ValueError(f"there is no sweep of {', '.join(unknown)}; decoders with a knob are {knobs}")
    base = mulo or MuloSD()
    rows: list[Decoder] = []
    for text in decoders:
        decoder = parse(text)
        if text == "draft-only":
            decoder = DraftOnly(base.scale, base.upsampler)
        elif text == "mulo":
            decoder = base
        elif isinstance(decoder, MuloSD):
            decoder = replace(decoder, scale=decoder.scale or base.scale)
        knob = KNOBS.get(decoder.name)
        stated = {part.partition("=")[0] for part in text.split(":")[1:]}
        if knob is None or knob.setting in stated:
            rows.append(decoder.resolve(family))
            continue
        values = given[decoder.name] if decoder.name in given else knob.values(decoder, family)
        if not values:
            raise ValueError(f"the decoder {decoder.name!r} needs at least one value of {knob.setting}")
        wrong = [value for value in values if knob.kind(value) != value]
        if wrong:
            raise ValueError(f"{knob.setting} of {decoder.name!r} must be {knob.kind.__name__}, got {wrong[0]}")
        rows += [replace(decoder, **{knob.setting: knob.kind(v)}).resolve(family) for v in dict.fromkeys(values)]
    return list(dict.fromkeys(rows))
