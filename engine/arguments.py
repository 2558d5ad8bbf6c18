"""Arguments of public calls: numbers of Python, numpy and torch alike, values in texts, and an error that says what is
possible."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

# Images that one call may ask for: it returns them all at once.
MOST_IMAGES = 100_000
# Characters of a value that an error shows.
SHOWN = 80
# Seeds are kept in 64 bits with a sign.
SEEDS = 2**63


def shown(value: object, most: int = SHOWN) -> str:
    """A value as errors show it: cut behind `most` characters, and by its type where it cannot be shown."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # whatever another class raises
        return f"an object of type {type(value).__name__}"
    return text if len(text) <= most else f"{text[: most - 1]}…"


def whole(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """A whole number, of Python, numpy or torch.

    Args:
        name: of the argument.
        value: what was given; True and 5.0 are no whole numbers.
        least, most: what it may be, both included.

    Raises:
        ValueError: it is something else.
    """
    try:
        if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        to = "" if most is None else f" and at most {most}"
        raise ValueError(f"{name} must be a whole number of at least {least}{to}, got {shown(value)}")
    return number


def setting(name: str, value: Any, kind: str) -> Any:
    """A value of a setting as Python's own, from one of Python, numpy or torch.

    Args:
        name: of the setting.
        value: what was given. True is no number, 5.0 no whole one, and no text is a number.
        kind: "bool", "int", "float" or "str", with " | None" behind it where None is possible.

    Raises:
        ValueError: it is something else, or a whole number of more than 64 bits.
    """
    plain = kind.removesuffix(" | None")
    if value is None and plain != kind:
        return None
    scalar = value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value
    if plain in ("bool", "str") and isinstance(scalar, bool if plain == "bool" else str):
        return scalar
    if plain in ("int", "float") and not isinstance(scalar, bool):
        try:
            if plain == "int" and -(2**63) <= (number := operator.index(scalar)) < 2**63:
                return number
            if plain == "float" and not isinstance(scalar, (str, bytes, bytearray)):
                return float(scalar)
        except (TypeError, ValueError, OverflowError):
            pass
    names = {"bool": "True or False", "int": "a whole number", "float": "a number", "str": "a text"}
    raise ValueError(f"{name} must be {names[plain]}{' or None' if plain != kind else ''}, got {shown(value)}")


def check_settings(record: Any) -> None:
    """Make the plain fields of a frozen dataclass Python's own (see `setting`); ValueError names one that is not."""
    for field in fields(record):
        kind = str(field.type)
        if kind.removesuffix(" | None") in ("bool", "int", "float", "str"):
            object.__setattr__(record, field.name, setting(field.name, getattr(record, field.name), kind))


def tokens_of(value: Any, codes: int) -> Tensor:
    """Tokens int64 [B, H, W] from a tensor or an array; ValueError for what is none, or of a code that is not there."""
    try:
        tokens = torch.as_tensor(value)
    except Exception:  # whatever the class of an odd value raises
        tokens = torch.zeros(())
    whole_numbers = not (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool)
    if tokens.dim() != 3 or not tokens.numel() or not whole_numbers or tokens.is_meta:
        raise ValueError(f"tokens must be whole numbers [B, H, W], got {told(value)}")
    if bool(((tokens < 0) | (tokens >= codes)).any()):
        raise ValueError(f"tokens must be from 0 to {codes - 1}, got {int(tokens.min())} to {int(tokens.max())}")
    return tokens.long()


def told(value: Any) -> str:
    """A tensor or an array by its type and shape, anything else as it is."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype} {list(value.shape)}"
    return shown(value)


def seeds_of(value: Any, count: int, images: int) -> list[int]:
    """One seed a prompt, from one for all or one for each; image n of a prompt uses its seed + n.

    Raises:
        ValueError: seeds are missing or too many, no whole numbers, or out of range.
    """
    several = not isinstance(value, (str, bytes)) and isinstance(value, Iterable) and getattr(value, "ndim", 1) > 0
    if count * images > MOST_IMAGES:
        raise ValueError(
            f"a call returns its images all at once, at most {MOST_IMAGES:,}, got {count} x {images}: make several"
        )
    given = list(value) if several else [value] * count
    if len(given) != count:
        raise ValueError(f"{count} prompts need one seed or {count} seeds, got {len(given)}")
    return [whole("seed", seed, 0, SEEDS - 1 - images) for seed in given]


def jobs_of(prompts: Any, seed: Any, num_images: Any) -> tuple[list[str], list[tuple[str, int]]]:
    """The prompts of a call, and (prompt, seed) of each of its images, those of a prompt side by side.

    Raises:
        ValueError: prompts are no texts, or as `whole` and `seeds_of` say.
    """
    asked = texts_of("prompts", prompts)
    images = whole("num_images", num_images)
    seeds = seeds_of(seed, len(asked), images)
    return asked, [(prompt, first + n) for prompt, first in zip(asked, seeds, strict=True) for n in range(images)]


def texts_of(name: str, value: Any, least: int = 1) -> list[str]:
    """A text, or several, as a list; ValueError for fewer than `least`, and for what is no text."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, (bytes, bytearray)) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0:
        raise ValueError(f"{name} must be a text or a list of texts, got {type(value).__name__}")
    given = list(value)
    wrong = [v for v in given if not isinstance(v, str)]
    if wrong:
        raise ValueError(f"{name} must be texts, got {type(wrong[0]).__name__} {shown(wrong[0])}")
    if len(given) < least:
        raise ValueError("there is no prompt; give at least one")
    return [str(v) for v in given]


def spelled(value: object) -> str:
    """A value as a text states it."""
    if isinstance(value, str):
        return re.sub(r"[%:,\s]", lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), value)
    return str(value).lower()


def read(what: str, value: object, kind: str) -> object:
    """A value of one of the types that settings have, from a text or as it is."""
    if "None" in kind and (value is None or (isinstance(value, str) and value.lower() == "none")):
        return None
    try:
        if isinstance(value, str):
            if kind.startswith("bool"):
                return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
            if kind.startswith("int"):
                return int(value)
            if kind.startswith("float"):
                return float(value)
            return re.sub(
                r"(?:%[0-9A-Fa-f]{2})+", lambda found: bytes.fromhex(found[0].replace("%", "")).decode(), value
            )
        return setting(what, value, kind)
    except (ValueError, KeyError):
        pass
    raise ValueError(f"{what} must be {kind.replace(' | None', ' or none')}, got {shown(value)}") from None
