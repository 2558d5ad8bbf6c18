"""Files that appear whole or not at all, as every floor writes them."""

from __future__ import annotations

from .engine.atomic import atomic, write_json

__all__ = ["atomic", "write_json"]
