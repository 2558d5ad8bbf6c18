"""What texts name: classes, imported when they are first asked for, and values of settings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from .arguments import setting, shown


class Registry(Mapping[str, Any]):
    """Names and what they stand for.

    Args:
        package: what a module that begins with a dot is relative to.
        lines: "module:object" by name. A module without a leading dot may be anyone's.
    """

    def __init__(self, package: str, lines: dict[str, str]) -> None:
        self.package, self.lines = package, lines

    def __getitem__(self, name: str) -> Any:
        module, _, attribute = self.lines[name].partition(":")
        return getattr(import_module(module, self.package), attribute)

    def __iter__(self) -> Iterator[str]:
        return iter(self.lines)

    def __len__(self) -> int:
        return len(self.lines)

    def add(self, name: str, line: str) -> None:
        """Register one more."""
        self.lines[name] = line


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
