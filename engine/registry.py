"""What texts name: classes, imported when they are first asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any


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
