"""Tensors that say they lie on a CUDA device and hold CPU data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .log import Log


class DeviceTensor(Tensor):
    """CPU data that claims to lie on `cuda:index`."""

    inner: Tensor
    seen: Log

    @staticmethod
    def __new__(cls, inner: Tensor, index: int = 0) -> DeviceTensor:
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device("cuda", index),
        )
        made.inner, made.seen = inner, log_of()
        made.seen.alive[storage_of(inner)] += 1
        return made

    def __del__(self) -> None:
        alive, at = self.seen.alive, storage_of(self.inner)
        alive[at] -= 1
        if not alive[at]:
            del alive[at]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from .dispatch import handle

        return handle(log_of(), func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"DeviceTensor({list(self.shape)}, {self.dtype}, {self.device})"

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self) -> Any:
        log_of().wait("tolist")
        return self.inner.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy")


def log_of() -> Log:
    """The log of the device; a tensor of it is of no use once it is gone."""
    if Log.active is None:
        raise RuntimeError("a tensor of a made-up device is used outside of FakeCuda()")
    return Log.active


def storage_of(tensor: Tensor) -> int:
    """What tells the memory of a CPU tensor from that of others."""
    return tensor.untyped_storage()._cdata


def on_device(x: Any) -> bool:
    return isinstance(x, DeviceTensor)


def plain(x: Any) -> bool:
    """Whether x is a tensor of the host."""
    return isinstance(x, Tensor) and not isinstance(x, DeviceTensor)


def inner_of(x: Any) -> Any:
    return x.inner if isinstance(x, DeviceTensor) else x


def wrap(out: Any, index: int) -> Any:
    """Results of a kernel as tensors of the device."""
    if isinstance(out, DeviceTensor):
        return out
    if isinstance(out, Tensor):
        return DeviceTensor(out, index)
    if isinstance(out, tuple) and hasattr(out, "_fields"):
        return type(out)(*(wrap(o, index) for o in out))
    if isinstance(out, (tuple, list)):
        return type(out)(wrap(o, index) for o in out)
    return out
