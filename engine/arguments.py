"""Arguments of public calls: numbers of Python, numpy and torch alike, and an error that says what is possible."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

# Seeds are kept in 64 bits with a sign.
SEEDS = 2**63


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
        raise ValueError(f"{name} must be a whole number of at least {least}{to}, got {value!r}")
    return number


def seeds_of(value: Any, count: int, images: int) -> list[int]:
    """One seed a prompt, from one for all or one for each; image n of a prompt uses its seed + n.

    Raises:
        ValueError: seeds are missing or too many, no whole numbers, or out of range.
    """
    several = not isinstance(value, (str, bytes)) and isinstance(value, Iterable) and getattr(value, "ndim", 1) > 0
    given = list(value) if several else [value] * count
    if len(given) != count:
        raise ValueError(f"{count} prompts need one seed or {count} seeds, got {len(given)}")
    return [whole("seed", seed, 0, SEEDS - 1 - images) for seed in given]


def texts_of(name: str, value: Any) -> list[str]:
    """A text, or several, as a list; ValueError for none, and for what is no text."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, (bytes, bytearray)) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a text or a list of texts, got {type(value).__name__}")
    given = list(value)
    wrong = [v for v in given if not isinstance(v, str)]
    if wrong:
        raise ValueError(f"{name} must be texts, got {type(wrong[0]).__name__} {wrong[0]!r}")
    if not given:
        raise ValueError("there is no prompt; give at least one")
    return [str(v) for v in given]
