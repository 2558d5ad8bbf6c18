"""Rows of a measurement whose engine computes in another type, or with narrower weights, than that of the others."""

from __future__ import annotations

from collections.abc import Sequence

from ..engine.dtypes import checked_dtype
from ..engine.engine import Engine

# What a row may state of its engine, beside the settings of its decoder.
SETTINGS = ("dtype", "quantization")


def split(text: str) -> tuple[str, dict[str, str]]:
    """A decoder as it is written, without what it says of its engine; and that, "zipar:window=4:dtype=bfloat16" say.

    Raises:
        ValueError: a setting of the engine that is stated twice, or has no value.
    """
    kept, own = [], dict[str, str]()
    for part in text.split(":"):
        name, _, value = part.partition("=")
        if name not in SETTINGS:
            kept.append(part)
        elif name in own or not value:
            raise ValueError(f"{text!r} must state {name} once, as {name}=VALUE")
        else:
            own[name] = value
    return ":".join(kept), own


def engines_of(engine: Engine, owns: Sequence[dict[str, str]]) -> list[tuple[str, Engine]] | None:
    """For each row a name and an engine, one for all rows that state the same; None where none states anything.

    Raises:
        ValueError: the family was not loaded from a folder, or it has no such type.
    """
    if not any(owns):
        return None
    made: dict[str, Engine] = {"": engine}
    names = [":".join(f"{key}={own[key]}" for key in SETTINGS if key in own) for own in owns]
    for name, own in zip(names, owns, strict=True):
        if name not in made:
            if engine.family.path is None:
                raise ValueError(f"a row with {name} loads the family again, and this one is in no folder")
            kind = own.get("quantization", engine.family.quantization)
            made[name] = Engine.from_pretrained(
                engine.family.path, device=engine.family.device, config=engine.config,
                dtype=checked_dtype(own.get("dtype", engine.dtype)), quantization=None if kind == "none" else kind,
            )  # fmt: skip
    return [(name, made[name]) for name in names]


def stated(engine: Engine, own: Engine | None) -> dict[str, str]:
    """What tells the engine of a row from the one that is measured: its settings, by the names of `SETTINGS`."""
    if own is None:
        return {}
    told = {} if own.dtype == engine.dtype else {"dtype": str(own.dtype).removeprefix("torch.")}
    if own.family.quantization != engine.family.quantization:
        told["quantization"] = own.family.quantization or "none"
    return told
