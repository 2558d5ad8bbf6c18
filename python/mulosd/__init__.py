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
    from .pipeline import MulosdPipeline, PipelineOutput

_SOURCE = {
    "AsyncEngine": "engine.async_engine",
    "DraftOnly": "engine.decoding",
    "Eagle": "engine.decoding",
    "Engine": "engine.engine",
    "EngineBusy": "engine.async_engine",
    "EngineClosed": "engine.async_engine",
    "EngineDead": "engine.async_engine",
    "EngineLoad": "engine.engine",
    "GenerationResult": "engine.engine",
    "GenerationStats": "engine.stats",
    "Jacobi": "engine.decoding",
    "Lantern": "engine.decoding",
    "MuloSD": "engine.decoding",
    "MulosdPipeline": "pipeline",
    "PipelineOutput": "pipeline",
    "Product": "engine.decoding",
    "Progress": "engine.stats",
    "SamplingParams": "engine.sampling",
    "SchedulerConfig": "engine.scheduler",
    "Serial": "engine.decoding",
    "Update": "engine.engine",
    "ZipAR": "engine.decoding",
    "list_families": "engine.family",
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
    "MulosdPipeline",
    "PipelineOutput",
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
    value = getattr(import_module(f".{_SOURCE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
