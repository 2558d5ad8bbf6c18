"""The ops of multi-scale local speculative decoding: one folder an op, each with a torch reference and faster backends.

Nothing is imported before it is asked for: `import mulosd.kernels` costs no torch, and a program that runs in the root
of the repository and finds this folder as `kernels`, as transformers does, runs nothing of it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .decode_layers import decode_layers
    from .expand_islands import Expansion, expand_islands
    from .fused_linear import fused_linear
    from .kv_write import kv_write
    from .local_resample import local_resample
    from .philox import Purpose, gumbel, uniform
    from .registry import BackendStatus, BackendUnavailable, diagnose
    from .sampling import processed_logits
    from .upsample_pool import PooledMass, nearest_code, neighbours, pooled_mass, shuffle_nearest
    from .verify_attention import verify_attention

_SOURCE = {
    "BackendStatus": "registry",
    "BackendUnavailable": "registry",
    "Expansion": "expand_islands",
    "PooledMass": "upsample_pool",
    "Purpose": "philox",
    "decode_layers": "decode_layers",
    "diagnose": "registry",
    "expand_islands": "expand_islands",
    "fused_linear": "fused_linear",
    "gumbel": "philox",
    "kv_write": "kv_write",
    "local_resample": "local_resample",
    "nearest_code": "upsample_pool",
    "neighbours": "upsample_pool",
    "pooled_mass": "upsample_pool",
    "processed_logits": "sampling",
    "shuffle_nearest": "upsample_pool",
    "uniform": "philox",
    "verify_attention": "verify_attention",
}

__all__ = [
    "BackendStatus",
    "BackendUnavailable",
    "Expansion",
    "PooledMass",
    "Purpose",
    "decode_layers",
    "diagnose",
    "expand_islands",
    "fused_linear",
    "gumbel",
    "kv_write",
    "local_resample",
    "nearest_code",
    "neighbours",
    "pooled_mass",
    "processed_logits",
    "shuffle_nearest",
    "uniform",
    "verify_attention",
]


def __getattr__(name: str) -> Any:
    if name not in _SOURCE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_SOURCE[name]}", __name__), name)
    setattr(sys.modules[__name__], name, value)
    return value


class _Package(ModuleType):
    """Keeps `mulosd.kernels.kv_write` the function.

    Importing a submodule binds it as an attribute of its package; for ops whose folder has the name of their function
    that would hide the function behind the module, depending on who imported what first.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if _SOURCE.get(name) == name and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
