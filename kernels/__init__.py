"""The ops of multi-scale local speculative decoding: one folder an op, each with a torch reference and faster backends.

A folder has the name of its function, and `kernels.kv_write` is the function: importing a submodule binds it here, the
lines below bind the function over it, once and for all. Backends are imported when a call first asks for them.
"""

from .expand_islands import Expansion, expand_islands
from .kv_write import kv_write
from .local_resample import local_resample
from .philox import Purpose, gumbel, uniform
from .registry import BackendStatus, BackendUnavailable, diagnose
from .sampling import processed_logits
from .upsample_pool import PooledMass, nearest_code, neighbours, pooled_mass, shuffle_nearest
from .verify_attention import verify_attention

__all__ = [
    "BackendStatus",
    "BackendUnavailable",
    "Expansion",
    "PooledMass",
    "Purpose",
    "diagnose",
    "expand_islands",
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
