"""Every operation on tensors of a made-up device: run on the CPU data, logged, recorded while a graph is captured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

from .log import Log
from .tensors import DeviceTensor, inner_of, log_of, on_device, plain, storage_of, wrap

# No kernel: they make a view, ask for memory, or read metadata.
VIEWS = {
    "view", "_unsafe_view", "reshape", "expand", "permute", "transpose", "t", "slice", "select", "unsqueeze", "squeeze",
    "split", "split_with_sizes", "unbind", "alias", "detach", "as_strided", "chunk", "unfold", "_reshape_alias",
    "lift_fresh", "empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "view_as_complex",
    "view_as_real", "diagonal", "movedim", "narrow", "set_", "resize_", "_to_copy_view", "sym_size", "is_same_size",
}  # fmt: skip
# The host waits for their result.
WAITS = {
    "_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "unique_dim", "unique_consecutive",
    "equal", "is_nonzero", "bincount", "item",
}  # fmt: skip
COPIES = ("_to_copy", "copy_")
INDEXING = ("index", "index_put_", "index_put", "_index_put_impl_", "_unsafe_index")
# Composite functions that a GPU runs as one kernel.
FUSED = {torch.nn.functional.scaled_dot_product_attention: "sdpa", torch.nn.functional.rms_norm: "rms_norm"}


def is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def index_of(tensors: list[Tensor], target: Any, log: Log) -> int:
    """The number of the device that an operation runs on; several are a mistake, as they are on a GPU."""
    found = {t.device.index for t in tensors}
    if len(found) > 1:
        log.mix(f"operation on cuda:{', cuda:'.join(map(str, sorted(found)))}")
    if is_cuda(target):
        index = torch.device(target).index
        return log.current if index is None else index
    return min(found)


def execute(log: Log, call: Callable[..., Any], args: Any, kwargs: Any, index: int, *, view: bool = False) -> Any:
    """Run a call on the CPU data; a capture records it."""
    args, kwargs = tree_map(inner_of, tuple(args)), tree_map(inner_of, kwargs)
    if log.capturing is not None and index != log.capturing.device:
        log.forbid(f"work on cuda:{index} during a capture on cuda:{log.capturing.device}")
    with _disable_current_modes():
        out = call(*args, **kwargs)
    read = {storage_of(t) for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)}
    fresh = [t for t in tree_flatten(out)[0] if isinstance(t, Tensor) and storage_of(t) not in read]
    for t in fresh:
        log.allocate(t.numel() * t.element_size())
    if log.capturing is not None:
        log.capturing.made |= {storage_of(t) for t in fresh}
        if not view:
            log.capturing.record(call, args, kwargs, out)
    return out


def handle(log: Log, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation of torch."""
    name = func._schema.name.split("::")[-1]
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    device = [t for t in tensors if on_device(t)]
    target = kwargs.get("device")
    asked = is_cuda(target)
    if not device and not asked:
        return func(*args, **kwargs)
    # A copy may have its tensors on several devices.
    index = index_of([] if asked and name in COPIES else device, target if asked else None, log)
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    to_device = True
    if name in COPIES:
        to_device = asked if target is not None else on_device(args[0])
        copied(log, name, args, kwargs, to_device)
    elif name in WAITS:
        log.wait(name)
        to_device = name not in ("_local_scalar_dense", "equal", "is_nonzero")
    elif name == "repeat_interleave" and kwargs.get("output_size") is None and on_device(args[-1]):
        log.wait("repeat_interleave without output_size")
    elif name in INDEXING:
        indexed(log, name, args)
    else:
        if device and any(plain(t) and t.dim() for t in tensors):
            log.mix(name)
        if name not in VIEWS:
            log.launch(name)
    out = execute(log, func, args, kwargs, index, view=name in VIEWS)
    if func._schema.is_mutable and args and isinstance(args[0], Tensor) and name.endswith("_"):
        return args[0]
    for argument, given in zip(func._schema.arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write and isinstance(given, Tensor):
            return given
    return wrap(out, index) if to_device else out


def copied(log: Log, name: str, args: Any, kwargs: dict[str, Any], to_device: bool) -> None:
    """Log a copy: one from pageable memory, or to the host, makes the host wait."""
    source = args[0] if name == "_to_copy" else args[1]
    waits_not = bool(kwargs.get("non_blocking", False) or (name == "copy_" and len(args) > 2 and args[2]))
    if on_device(source) and not to_device:
        log.wait("copy to the host")
    elif plain(source) and to_device and not (name == "copy_" and source.dim() == 0):
        if waits_not and storage_of(source) in log.pinned:
            log.launch("copy from pinned memory")
            if log.capturing is None:
                log.fly(source)
        else:
            log.wait("copy from pageable memory")
    else:
        log.launch(name)


def indexed(log: Log, name: str, args: Any) -> None:
    """Log an indexing: indices and values of the host are copied first."""
    indices = [i for i in args[1] if i is not None]
    if any(i.dtype == torch.bool for i in indices):
        log.wait(f"{name} by a bool mask")
    if any(plain(i) for i in indices):
        if not on_device(args[0]):
            log.mix(f"{name} of a tensor of the host by one of the device")
        log.wait(f"{name} by an index of the host")
    if len(args) > 2 and plain(args[2]):
        if args[2].dim():
            log.mix(f"{name} with a value of the host")
        log.wait(f"{name} with a scalar of the host")
    log.launch(name)


class DispatchMode(TorchDispatchMode):
    """Sees operations that make tensors of the device out of nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return handle(log_of(), func, args, kwargs or {})


class FunctionMode(TorchFunctionMode):
    """Sees functions before they are taken apart: fused ones, pinned memory, devices without a number."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        log = log_of()
        args, kwargs = tuple(map(self.numbered, args)), {k: self.numbered(v) for k, v in (kwargs or {}).items()}
        if func in FUSED and any(on_device(a) for a in args):
            if any(plain(a) for a in args):
                log.mix(FUSED[func])
            log.launch(FUSED[func])
            index = index_of([a for a in args if on_device(a)], None, log)
            return wrap(execute(log, func, args, kwargs, index), index)
        if func is torch.Tensor.pin_memory or kwargs.pop("pin_memory", False):
            made = args[0].clone() if func is torch.Tensor.pin_memory else func(*args, **kwargs)
            log.pinned[storage_of(made)] = made  # kept, so that no other memory takes its place
            return made
        if func is torch.Tensor.is_pinned:
            return storage_of(args[0]) in log.pinned
        return func(*args, **kwargs)

    def numbered(self, x: Any) -> Any:
        """A device with its number: without, torch would ask the driver for the current one."""
        if isinstance(x, (str, torch.device)) and str(x) == "cuda":
            return torch.device("cuda", log_of().current)
        return x


class NoInference:
    """In place of inference mode, in which wrapped tensors have no views: no gradients."""

    def __init__(self, mode: bool) -> None:
        self.mode = mode

    def __enter__(self) -> None:
        self.before = torch.is_grad_enabled()
        torch._C._set_grad_enabled(self.before and not self.mode)

    def __exit__(self, *_: Any) -> None:
        torch._C._set_grad_enabled(self.before)


__all__ = ["DeviceTensor", "DispatchMode", "FunctionMode", "NoInference", "execute", "index_of"]
