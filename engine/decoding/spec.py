"""Decoders written as text: a name and settings, such as `mulo:window=2:tau=0.01`."""

from __future__ import annotations

from .base import Decoder
from .draft_only import DraftOnly
from .eagle import Eagle
from .jacobi import Jacobi
from .mulo import MuloSD
from .serial import Serial
from .zipar import ZipAR

DECODERS: dict[str, type[Decoder]] = {c.name: c for c in (Serial, DraftOnly, MuloSD, ZipAR, Jacobi, Eagle)}


def parse(text: str) -> Decoder:
    """The decoder that a text names.

    Args:
        text: NAME or NAME:SETTING=VALUE:…, the settings being those of the decoder's class (LANTERN's are
            `lantern_k` and `delta` of `eagle`). `none` leaves one open.

    Raises:
        ValueError: no such decoder or setting, or a value that it cannot have; the message lists what there is.
    """
    name, *settings = text.strip().split(":")
    if name not in DECODERS:
        raise ValueError(f"decoders must be chosen from {', '.join(DECODERS)}, got {name or 'none'}")
    kind = DECODERS[name]
    types = kind.text_settings()
    values: dict[str, object] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if key not in types or not equals:
            raise ValueError(
                f"decoder {name!r} has no setting {setting!r}: write key=value with "
                f"{'one of ' + ', '.join(types) if types else 'no key at all'}"
            )
        values[key] = read(f"{name}:{key}", value, types[key])
    return kind.from_settings(values)


def spell(decoder: Decoder) -> str:
    """The text that `parse` reads as this decoder: its name and every setting that is not the default."""
    usual = type(decoder)().settings()
    given = {key: value for key, value in decoder.settings().items() if key not in usual or value != usual[key]}
    return ":".join([decoder.name, *(f"{key}={str(value).lower()}" for key, value in given.items())])


def read(what: str, value: str, kind: str) -> object:
    """A value of one of the types that settings have."""
    if value.lower() == "none" and "None" in kind:
        return None
    try:
        if kind.startswith("bool"):
            return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
        if kind.startswith("int"):
            return int(value)
        return float(value) if kind.startswith("float") else value
    except (ValueError, KeyError):
        raise ValueError(f"{what} must be {kind.replace(' | None', ' or none')}, got {value!r}") from None
