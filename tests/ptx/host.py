"""A make-believe GPU: inside of it, wrappers of kernels think that CPU tensors are CUDA ones, and launches run PTX.

    with Gpu(80) as gpu:
        out = kv_write(..., backend="triton")
    print(gpu.reports[-1].summary())

Every tensor whose `data_ptr` was asked for, and that still lives, is a buffer of the device at its real address. What
`torch.empty` and its kin return counts as not written until somebody writes it.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .build import build
from .machine import Machine
from .memory import POISON, GlobalMemory, at_address
from .parse import Kernel, parse
from .report import Report

SHARED_OPTIN = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB a block, by compute capability
_FORMATS = {"i1": "b", "i8": "b", "i16": "h", "i32": "i", "i64": "q", "u1": "B", "u8": "B", "u16": "H", "u32": "I"}
_FORMATS |= {"u64": "Q", "fp32": "f", "fp64": "d"}


class _Empties(TorchDispatchMode):
    """Fills new memory with junk and remembers what nobody has written."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, np.ndarray] = {}  # address of a storage -> which bytes were written

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"):
            storage = out.untyped_storage()
            if storage.nbytes():
                ctypes.memset(storage.data_ptr(), POISON, storage.nbytes())
                self.known[storage.data_ptr()] = np.zeros(storage.nbytes(), np.uint8)
            return out
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, torch.Tensor):
                self.known.pop(value.untyped_storage().data_ptr(), None)
        fresh = [r.alias_info is None for r in func._schema.returns]
        results = out if isinstance(out, (tuple, list)) else [out]
        for new, value in zip(fresh, results, strict=False):
            if new and isinstance(value, torch.Tensor):
                self.known.pop(value.untyped_storage().data_ptr(), None)
        return out


class Gpu:
    """The device; a context manager.

    Args:
        capability: 80, 86, 89, 90, ...
        processors: multiprocessors, of which the plans of launches make something.
        native: build mulosd._C of csrc/ too, for the CUDA backends.
        races: look for races.
        seed: draw the order in which warps run, see `Machine`.
    """

    def __init__(
        self,
        capability: int = 80,
        *,
        processors: int = 4,
        native: bool = False,
        races: bool = True,
        seed: int | None = None,
    ) -> None:
        self.capability, self.processors, self.races, self.seed = capability, processors, races, seed
        self.shared_optin = SHARED_OPTIN[capability] * 1024
        self.reports: list[Report] = []
        self._ptx: dict[str, str] = {}  # hash of a Triton kernel -> PTX
        self._error: Exception | None = None
        self._handed: list[weakref.ref[torch.Tensor]] = []  # tensors whose address somebody knows
        self.native: Any = None
        if native:
            self.native, library, self._files = build()
            shape, args = ctypes.POINTER(ctypes.c_uint), ctypes.POINTER(ctypes.c_void_p)
            callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, shape, ctypes.c_size_t, args)
            self._callback = callback(self._launched)
            self._library = ctypes.CDLL(str(library))

    def __enter__(self) -> Gpu:
        self._stack = ExitStack()
        enter = self._stack.enter_context
        properties = SimpleNamespace(
            major=self.capability // 10,
            minor=self.capability % 10,
            multi_processor_count=self.processors,
            shared_memory_per_block_optin=self.shared_optin,
        )
        _forget_answers()
        self._stack.callback(_forget_answers)
        enter(patch.object(torch.Tensor, "is_cuda", property(lambda tensor: True), create=True))
        enter(patch.object(torch.cuda, "is_available", lambda: True))
        enter(patch.object(torch.cuda, "get_device_properties", lambda *_: properties))
        enter(patch.object(torch.cuda, "current_stream", lambda *_: SimpleNamespace(cuda_stream=0)))
        enter(patch.object(torch.Tensor, "data_ptr", self._hand_out(torch.Tensor.data_ptr), create=True))
        for name in ("device", "device_of"):
            enter(patch.object(torch.cuda, name, lambda *_: nullcontext()))
        if self.native is not None:
            # One library serves every capability.
            self._library.ptx_device(self._callback, self.capability, self.shared_optin)
            # Not by patch.dict, which would forget all modules that are first imported inside.
            enter(_module("mulosd._C", _Checked(self)))
        if find_spec("triton") is not None:
            enter(self._triton())
        self.empties = enter(_Empties())
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()

    def _hand_out(self, data_ptr: Any) -> Any:
        def asked(tensor: torch.Tensor) -> int:
            self._handed.append(weakref.ref(tensor))
            return int(data_ptr(tensor))

        return asked

    @contextmanager
    def _triton(self) -> Iterator[None]:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.backends.nvidia.compiler import CUDABackend
        from triton.compiler.compiler import CompiledKernel

        gpu, original = self, CompiledKernel.__init__

        def remember(kernel: Any, src: Any, group: Any, digest: str) -> None:
            original(kernel, src, group, digest)
            gpu._ptx[digest] = kernel.asm["ptx"]

        class Launcher:
            def __init__(self, src: Any, metadata: Any) -> None:
                self.src, self.metadata = src, metadata

            def __call__(self, x: int, y: int, z: int, stream: int, *rest: Any) -> None:
                # function, packed metadata, launch metadata, two hooks, then the arguments
                gpu._launch_triton((x, y, z), self.src, self.metadata, rest[5:])

        utils = SimpleNamespace(
            load_binary=lambda *_: (None, 0, 0, 0, 1024),
            unload_module=lambda *_: None,
            get_device_properties=lambda *_: {
                "max_shared_mem": self.shared_optin,
                "multiprocessor_count": self.processors,
                "warpSize": 32,
            },
        )
        # Triton keeps its compiled kernels by device: every capability is a device of its own.
        driver = SimpleNamespace(
            utils=utils,
            launcher_cls=Launcher,
            get_current_target=lambda: GPUTarget("cuda", self.capability, 32),
            get_current_device=lambda: self.capability,
            get_current_stream=lambda *_: 0,
            get_active_torch_device=lambda: torch.device("cpu"),
            get_device_capability=lambda *_: (self.capability // 10, self.capability % 10),
        )
        # Nobody reads machine code here; what is kept without it must not come into the cache that others read.
        folder = Path(tempfile.gettempdir()) / f"mulosd-ptx-{os.getuid()}" / "triton"
        before = triton.runtime.driver._active
        triton.runtime.driver.set_active(driver)
        with (
            patch.object(CompiledKernel, "__init__", remember),
            patch.object(CUDABackend, "make_cubin", lambda *_: b"not assembled"),
            patch.dict(os.environ, {"TRITON_CACHE_DIR": str(folder)}),
        ):
            yield
        triton.runtime.driver._active = before

    def _launch_triton(self, grid: tuple[int, int, int], src: Any, metadata: Any, args: tuple[Any, ...]) -> None:
        text = self._ptx.get(metadata.hash) or _PTX[metadata.hash]
        _PTX[metadata.hash] = text
        kernel = _parsed(text, metadata.name)
        types = list(src.signature.values())
        values = [_pack(t, a) for t, a in zip(types, args, strict=True) if t != "constexpr"]
        values += [bytes(8)] * (len(kernel.params) - len(values))  # scratch memory, which none of them uses
        params = bytearray(kernel.param_bytes)
        for (offset, size), value in zip(kernel.params.values(), values, strict=True):
            params[offset : offset + size] = value.ljust(size, b"\0")
        self._run(kernel, grid, (32 * metadata.num_warps, 1, 1), metadata.shared, bytes(params))

    def _launched(self, name: bytes, shape: Any, shared: int, args: Any) -> int:
        """A launch of CUDA, called from C; errors wait for the wrapper to return."""
        try:
            kernel = _parsed(self._files[self.capability, name.decode()].read_text(), name.decode())
            params = bytearray(kernel.param_bytes)
            for i, (offset, size) in enumerate(kernel.params.values()):
                params[offset : offset + size] = ctypes.string_at(args[i], size)
            grid, block = tuple(shape[:3]), tuple(shape[3:6])
            self._run(kernel, grid, block, shared, bytes(params))  # type: ignore[arg-type]
        except Exception as error:  # raised again where Python called
            self._error = error
            return 1
        return 0

    def _run(
        self, kernel: Kernel, grid: tuple[int, int, int], block: tuple[int, int, int], shared: int, params: bytes
    ) -> None:
        memory = GlobalMemory()
        storages = {}
        self._handed = [tensor for tensor in self._handed if tensor() is not None]
        for tensor in self._handed:
            item = tensor()
            assert item is not None
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = (storage.nbytes(), str(tuple(item.shape)))
        for address, (size, name) in storages.items():
            if not size:
                continue
            buffer = at_address(address, size, name)
            buffer.known = self.empties.known.get(address)
            memory.register(buffer)
        self.reports.append(Machine(kernel, memory, params, races=self.races, seed=self.seed).run(grid, block, shared))

    @property
    def findings(self) -> list[str]:
        """What was found in all launches so far."""
        return [f"{report.kernel}: {found}" for report in self.reports for found in report.findings.values()]


@contextmanager
def _module(name: str, stand_in: Any) -> Iterator[None]:
    before = sys.modules.pop(name, None)
    sys.modules[name] = stand_in
    yield
    del sys.modules[name]
    if before is not None:
        sys.modules[name] = before


class _Checked:
    """The native module; an error in a launch is raised as it was."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._gpu.native, name)
        if not callable(value):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            self._gpu._error = None
            try:
                return value(*args, **kwargs)
            except RuntimeError:
                if self._gpu._error is not None:
                    raise self._gpu._error from None
                raise

        return call


_PTX: dict[str, str] = {}


@lru_cache(maxsize=64)
def _parsed(text: str, name: str) -> Kernel:
    return parse(text, name)


def _pack(kind: str, value: Any) -> bytes:
    """One argument of a Triton kernel."""
    if kind[0] == "*":
        address = 0 if value is None else value.data_ptr() if hasattr(value, "data_ptr") else int(value)
        return struct.pack("Q", address)
    return struct.pack(_FORMATS[kind], value)


def _forget_answers() -> None:
    """Empty the caches of what the package asked about the device."""
    for name, module in list(sys.modules.items()):
        if name.startswith("mulosd.kernels"):
            for item in vars(module).values():
                if hasattr(item, "cache_clear"):
                    item.cache_clear()
