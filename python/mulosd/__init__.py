"""Fast autoregressive image generation by multi-scale local speculative decoding.

Names are imported when they are first asked for: `import mulosd` costs neither torch nor weights.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .engine.decoding import DraftOnly, MuloSD, Serial
    from .engine.engine import Engine, GenerationResult
    from .engine.family import list_families
    from .engine.sampling import SamplingParams
    from .engine.stats import GenerationStats, Progress

_SOURCE = {
    "DraftOnly": "decoding",
    "Engine": "engine",
    "GenerationResult": "engine",
    "GenerationStats": "stats",
    "MuloSD": "decoding",
    "Progress": "stats",
    "SamplingParams": "sampling",
    "Serial": "decoding",
    "list_families": "family",
}

__all__ = [
    "DraftOnly",
    "Engine",
    "GenerationResult",
    "GenerationStats",
    "MuloSD",
    "Progress",
    "SamplingParams",
    "Serial",
    "__version__",
    "list_families",
]


def __getattr__(name: str) -> Any:
    if name not in _SOURCE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".engine.{_SOURCE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
