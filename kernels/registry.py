"""Which backend serves a call of an op: cuda before triton before cpu before torch, each free to decline with a reason.

Every op is also registered with torch.library as `torch.ops.mulosd.NAME`, schema and fake implementation included. A
call outside of a compiled region goes straight to its backend, which saves the dispatcher's microseconds; inside one it
is the registered op, which `torch.compile` keeps as one opaque node.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

BACKENDS = ("cuda", "triton", "cpu", "torch")
ENVIRONMENT = "MULOSD_BACKEND"
NOT_WRITTEN = "this op has no such backend"
NAMESPACE = "mulosd"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")


class BackendUnavailable(RuntimeError):
    """No backend, or not the forced one, can serve a call; the message holds the reason of each."""


class BackendModule(Protocol):
    """What the module of an accelerated backend offers; `call` is of the op's `Call`."""

    def unusable(self) -> str | None: ...

    def decline(self, call: Any) -> str | None: ...

    def run(self, call: Any) -> Any: ...


@dataclass(frozen=True)
class Op:
    """An op with its torch reference and its accelerated backends.

    Args:
        name: the public name.
        call: the named arguments of one call; a tensor comes first, which decides the device.
        reference: the torch implementation; it serves every device.
        schema: the arguments and results in the notation of torch.library, without the name; the arguments are those
            of `call`, in its order, and last `str? backend=None`. Empty: the op is not registered.
        fake: the shapes and dtypes of the results, from the arguments of the schema.
        modules: backend name -> module with `unusable`, `decline` and `run`, imported when first asked for.
        order: the backends in the order in which a call is offered to them; None is that of `BACKENDS` for every call.
    """

    name: str
    call: Callable[..., NamedTuple]
    reference: Callable[..., Any]
    schema: str = ""
    fake: Callable[..., Any] | None = None
    modules: dict[str, str] = field(default_factory=dict)
    order: Callable[[Any], tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        unknown = set(self.modules) - set(BACKENDS[:-1])
        if unknown:
            possible = ", ".join(BACKENDS[:-1])
            raise ValueError(f"op {self.name}: unknown backends {sorted(unknown)}, possible are {possible}")
        OPS[self.name] = self
        if not self.schema or self.fake is None:
            return
        LIBRARY.define(f"{self.name}{self.schema}")
        LIBRARY.impl(self.name, self._registered, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{self.name}", self.fake, lib=LIBRARY)

    def __call__(self, call: Any, backend: str | None = None) -> Any:
        """Run the op where its first tensor lives; the backend is `backend`, else $MULOSD_BACKEND, else the first able
        one.

        Args:
            call: the arguments, of the op's `Call`.
            backend: forces one.

        Raises:
            BackendUnavailable: the forced backend is unknown or declines.
        """
        if self.schema and torch.compiler.is_compiling():
            return getattr(getattr(torch.ops, NAMESPACE), self.name)(*call, backend)
        forced = backend or os.environ.get(ENVIRONMENT) or None
        if forced is None and (not self.modules or call[0].device.type == "cpu"):
            if "cpu" in self.modules and self.reason("cpu", call) is None:
                return self._module("cpu").run(call)
            return self.reference(*call)
        if self.order is None and forced in self.modules and self.reason(forced, call) is None:
            return self._module(forced).run(call)  # what `select` finds, without asking the others
        name = self.select(forced, call)
        return self.reference(*call) if name == "torch" else self._module(name).run(call)

    def _registered(self, *args: Any, backend: str | None = None) -> Any:
        """The implementation of the registered op, which returns contiguous tensors and never its arguments."""
        if len(args) > len(inspect.signature(self.call).parameters):
            args, backend = args[:-1], args[-1]
        result = self(self.call(*args), backend)
        if isinstance(result, Tensor):
            return result.clone() if any(result is a for a in args) else result.contiguous()
        return tuple(t.contiguous() for t in result)

    def select(self, forced: str | None, call: Any) -> str:
        """The backend that serves a call."""
        reasons: dict[str, str] = {}
        for name in BACKENDS if self.order is None else self.order(call):
            reason = self.reason(name, call)
            if reason is not None:
                reasons[name] = reason
            elif forced in (None, name):
                return name
        listing = "".join(f"\n  {name}: {reasons.get(name, 'able, but not the one asked for')}" for name in BACKENDS)
        asked = f"{forced!r} (possible: {', '.join(BACKENDS)})" if forced not in BACKENDS else repr(forced)
        raise BackendUnavailable(
            f"{self.name}: backend {asked} cannot serve this call{listing}\n"
            f"Leave backend= and ${ENVIRONMENT} unset to let the first able backend serve."
        )

    def reason(self, name: str, call: Any) -> str | None:
        """Why backend `name` declines this call, or None when it would serve it."""
        return self.unusable(name) or (None if name == "torch" else self._module(name).decline(call))

    def unusable(self, name: str) -> str | None:
        """Why backend `name` can serve no call on this machine, or None."""
        if name == "torch":
            return None
        if name not in self.modules:
            return NOT_WRITTEN
        try:
            return self._module(name).unusable()
        except ImportError as error:
            return f"import failed: {error}"

    def run(self, name: str, call: Any) -> Any:
        """Run by a backend whose `reason` was None for this call, which is not asked again."""
        return self._module(name).run(call)

    def _module(self, name: str) -> BackendModule:
        return imported(self.modules[name])


@lru_cache
def imported(path: str) -> BackendModule:
    """The module of a backend; a step asks for it several times, and each import costs microseconds."""
    return cast(BackendModule, import_module(path))


OPS: dict[str, Op] = {}


@dataclass(frozen=True)
class BackendStatus:
    """Usability of one backend of one op on this machine; `reason` is empty when it is usable."""

    op: str
    backend: str
    usable: bool
    reason: str


OP_MODULES = (
    "decode_layers",
    "expand_islands",
    "fused_linear",
    "kv_write",
    "local_resample",
    "upsample_pool",
    "verify_attention",
)


def diagnose() -> list[BackendStatus]:
    """Usability of every backend of every op on this machine, with the reason where there is none."""
    for module in OP_MODULES:
        import_module(f".{module}", __package__)
    report = []
    for op in sorted(OPS.values(), key=lambda op: op.name):
        for name in BACKENDS:
            reason = op.unusable(name)
            report.append(BackendStatus(op.name, name, reason is None, reason or ""))
    return report
