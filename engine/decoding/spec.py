"""Decoders by name, and written as text: a name and settings, such as `mulo:window=2:tau=0.01`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..arguments import read, shown, spelled
from ..registry import Registry
from .base import Decoder

# One line a decoder: the class by name.
DECODERS = Registry(
    "mulosd.engine.decoding",
    {
        "serial": ".serial:Serial",
        "draft-only": ".draft_only:DraftOnly",
        "mulo": ".mulo:MuloSD",
        "product": ".product:Product",
        "zipar": ".zipar:ZipAR",
        "jacobi": ".jacobi:Jacobi",
        "eagle": ".eagle:Eagle",
    },
)


# What an argument may be that asks for a decoder.
DecoderLike = Decoder | str | Mapping[str, Any] | None


def decoder_class(name: object) -> type[Decoder]:
    """The class of a decoder; ValueError lists the names."""
    if not isinstance(name, str) or name not in DECODERS:
        raise ValueError(f"decoders must be chosen from {', '.join(DECODERS)}, got {shown(name)}")
    kind: type[Decoder] = DECODERS[name]
    return kind


def decoder_of(given: DecoderLike) -> Decoder:
    """The decoder that an argument means.

    Args:
        given: a decoder; a text as for `parse`; a mapping of `name` (or `decoder`) and settings, such as
            `{"name": "mulo", "tau": 0.02}`. What None means depends on the family, see `default.decoder_for`.

    Raises:
        ValueError: anything else, or as `parse`.
    """
    if isinstance(given, Decoder):
        return given
    if isinstance(given, str):
        return parse(given)
    if isinstance(given, Mapping):
        settings = dict(given)
        names = [settings.pop(key) for key in ("name", "decoder") if key in settings]
        if len(names) != 1:
            raise ValueError(f"a mapping names its decoder once, as 'name' or 'decoder', got {shown(dict(given))}")
        return with_settings(names[0], settings)
    if isinstance(given, type) and issubclass(given, Decoder):
        raise ValueError(f"decoder is the class {given.__name__}: give a decoder, {given.__name__}(...)")
    raise ValueError(
        f"decoder must be a decoder, such as Serial(), a text, such as 'mulo:tau=0.02', or a mapping, such as "
        f"{{'name': 'mulo', 'tau': 0.02}}; got {shown(given)}"
    )


def parse(text: str) -> Decoder:
    """The decoder that a text names.

    Args:
        text: NAME or NAME:SETTING=VALUE:…, the settings being those of the decoder's class (LANTERN's are
            `lantern_k` and `delta` of `eagle`). `none` leaves one open. In a file name, `%3A` is a colon, `%2C` a
            comma, `%25` a percent sign.

    Raises:
        ValueError: no such decoder or setting, or a value that it cannot have; the message lists what there is.
    """
    name, *parts = text.strip().split(":")
    settings: dict[str, Any] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        settings[key if equals else part] = value if equals else None
        if not equals:
            raise ValueError(no_setting(name, part))
    return with_settings(name, settings)


def spell(decoder: Decoder) -> str:
    """The text that `parse` reads as this decoder: its name and every setting that is not the default."""
    try:
        usual = type(decoder).from_settings({}).settings()
    except TypeError:  # some setting has no default
        usual = {}
    given = {key: value for key, value in decoder.settings().items() if key not in usual or value != usual[key]}
    return ":".join([decoder.name, *(f"{key}={spelled(value)}" for key, value in given.items())])


def with_settings(name: object, settings: Mapping[str, Any]) -> Decoder:
    """A decoder by name, with settings as values or as texts."""
    kind = decoder_class(name)
    types = kind.text_settings()
    for key, value in settings.items():
        if key not in types:
            raise ValueError(no_setting(kind.name, f"{key}={value}"))
    return kind.from_settings({key: read(f"{name}:{key}", value, types[key]) for key, value in settings.items()})


def no_setting(name: str, setting: str) -> str:
    """The message for a setting that a decoder does not have."""
    types = decoder_class(name).text_settings()
    known = "one of " + ", ".join(types) if types else "no key at all"
    return f"decoder {name!r} has no setting {setting!r}: write key=value with {known}"
