"""The ops of `mulosd.kernels` on a made-up device: served by their reference, counted as the kernels that would."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import Tensor

from mulosd.kernels import registry

from .dispatch import execute, index_of
from .tensors import inner_of, log_of, on_device, plain, wrap

# What the native module says of itself.
NATIVE = SimpleNamespace(MAX_VOCAB=65536, MAX_SIDE=128, compiled_archs=lambda: [90])
# Modules of kernels that ask whether they can run on this machine.
DOORS = (
    "native",
    "kv_write.cuda",
    "local_resample.cuda",
    "expand_islands.cuda",
    "upsample_pool.pooled_mass_cuda",
    "upsample_pool.nearest_code_cuda",
    "jit",
    "verify_attention.triton",
    "fused_linear.triton",
    "kv_write.triton",
    "local_resample.triton",
    "expand_islands.triton",
    "upsample_pool.pooled_mass_triton",
    "upsample_pool.nearest_code_triton",
)


def call_op(op: registry.Op, call: Any, backend: str | None = None) -> Any:
    """Stands for `Op.__call__`."""
    log = log_of()
    if not on_device(call[0]):
        if any(on_device(a) for a in call):
            log.mix(f"op {op.name}")
        return op.reference(*call)
    name = op.select(backend, call)
    log.served[op.name, name] += 1
    if name == "torch":
        return op.reference(*call)
    if any(plain(a) and a.dim() for a in call):
        log.mix(f"op {op.name}")
    log.launch(f"mulosd::{op.name}")
    index = index_of([a for a in call if on_device(a)], None, log)
    out = execute(log, op.reference, call, {}, index)
    if isinstance(out, Tensor):
        for a in call:
            if on_device(a) and inner_of(a) is out:
                return a
    return wrap(out, index)
