"""`FakeCuda`: the context in which this machine has two CUDA devices, which hold CPU data.

with FakeCuda() as log:
    engine = Engine(random_family(), device="cuda")
    engine.generate("apple", decoder=Serial())
print(log.summary())
"""

from __future__ import annotations

import contextlib
import gc
import importlib
from collections.abc import Iterator
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from mulosd.kernels import native as native_door
from mulosd.kernels import registry

from . import guard
from .dispatch import DispatchMode, FunctionMode, NoInference
from .graphs import patches
from .log import Log
from .ops import DOORS, NATIVE, call_op

MEMORY = 140 << 30


@contextlib.contextmanager
def FakeCuda(native: bool = True, triton: bool = True) -> Iterator[Log]:
    """Two devices; `native` and `triton` say which kernel backends are installed."""
    guard.load()
    log = Log()
    properties = SimpleNamespace(multi_processor_count=132, major=9, minor=0, name="fake", total_memory=MEMORY)
    cuda = {
        **patches(),
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "get_device_name": lambda *_: "fake",
        "get_device_properties": lambda *_: properties,
        "get_device_capability": lambda *_: (9, 0),
        "mem_get_info": lambda *_: (MEMORY, MEMORY),
    }
    with contextlib.ExitStack() as stack:

        def patch(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value))

        for name, value in cuda.items():
            patch(torch.cuda, name, value)
        patch(torch._C, "_InferenceMode", NoInference)
        patch(registry.Op, "__call__", call_op)
        patch(native_door, "module", lambda: NATIVE)
        for name in DOORS:
            is_triton = name == "jit" or name.endswith("triton")
            if is_triton and find_spec("triton") is None:
                continue
            door = importlib.import_module(f"mulosd.kernels.{name}")
            reason = None if (triton if is_triton else native) else "not installed"
            patch(door, "unusable", lambda reason=reason: reason)
        # Parameters are replaced, not given other data: a plain Parameter cannot become a tensor of the device.
        overwrite, lifting = torch.__future__.get_overwrite_module_params_on_conversion, torch._C._only_lift_cpu_tensors
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrite())
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifting())
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        torch._C._set_only_lift_cpu_tensors(True)
        Log.active = log
        try:
            with FunctionMode(), DispatchMode():
                yield log
        finally:
            Log.active = None
            gc.collect()
