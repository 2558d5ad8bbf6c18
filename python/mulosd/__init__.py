"""Fast autoregressive image generation by multi-scale local speculative decoding.

Names are imported when they are first asked for: `import mulosd` costs neither torch nor weights.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .engine.async_engine import AsyncEngine, EngineBusy, EngineClosed, EngineDead
    from .engine.decoding import DraftOnly, Eagle, Jacobi, Lantern, MuloSD, Product, Serial, ZipAR
    from .engine.engine import Engine, EngineLoad, GenerationResult, Update
    from .engine.family import list_families
    from .engine.sampling import SamplingParams
    from .engine.scheduler import SchedulerConfig
    from .engine.stats import GenerationStats, Progress

_SOURCE = {
    "AsyncEngine": "async_engine",
    "DraftOnly": "decoding",
    "Eagle": "decoding",
    "Engine": "engine",
    "EngineBusy": "async_engine",
    "EngineClosed": "async_engine",
    "EngineDead": "async_engine",
    "EngineLoad": "engine",
    "GenerationResult": "engine",
    "GenerationStats": "stats",
    "Jacobi": "decoding",
    "Lantern": "decoding",
    "MuloSD": "decoding",
    "Product": "decoding",
    "Progress": "stats",
    "SamplingParams": "sampling",
    "SchedulerConfig": "scheduler",
    "Serial": "decoding",
    "Update": "engine",
    "ZipAR": "decoding",
    "list_families": "family",
}

__all__ = [
    "AsyncEngine",
    "DraftOnly",
    "Eagle",
    "Engine",
    "EngineBusy",
    "EngineClosed",
    "EngineDead",
    "EngineLoad",
    "GenerationResult",
    "GenerationStats",
    "Jacobi",
    "Lantern",
    "MuloSD",
    "Product",
    "Progress",
    "SamplingParams",
    "SchedulerConfig",
    "Serial",
    "Update",
    "ZipAR",
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
