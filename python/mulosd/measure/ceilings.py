"""What a CPU can do at most with the threads at hand: how fast it reads, how fast it multiplies matrices.

Measured in the run whose figures stand beside it, in less than a second: clocks, neighbours and threads differ from one
run to the next. Every figure is the best of several, so that a floor that is worked out by it is a lower bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.models.linear import has_onednn, pack, packed_linear
from ..kernels import host
from ..kernels.fused_linear import OP as FUSED_LINEAR
from ..kernels.fused_linear.call import Call as Fused
from .machine import processor_name

MIB = 1 << 20
# Bytes of the buffers that are read whatever is measured: the last is far beyond the caches.
SIZES = (1 * MIB, 8 * MIB, 32 * MIB, 256 * MIB)
# Rows, outputs and inputs of the products, the smallest first.
SHAPES = ((64, 768, 768), (256, 768, 768), (1024, 768, 768))
TYPES = (torch.float32, torch.bfloat16)
# Seconds for each buffer and for all products of a type, and the fewest and the most times that each is taken.
READ_SECONDS, PRODUCT_SECONDS = 0.04, 0.12
FEWEST, MOST = 2, 1000
# Inputs of the product by which the host kernels read a buffer.
COLUMNS = 4096


@dataclass(frozen=True)
class Read:
    """How fast a buffer of so many bytes is read again and again."""

    bytes: int
    bytes_per_second: float


@dataclass(frozen=True)
class Product:
    """How fast inputs [m, k] are multiplied by weights [n, k], `by` torch or onednn, whichever was faster."""

    dtype: str
    m: int
    n: int
    k: int
    flops_per_second: float
    by: str


@dataclass(frozen=True)
class Ceilings:
    """What a CPU can do a second.

    Attributes:
        processor: its name.
        isa: instructions that torch and the host kernels ("native") use; "none" where those do not run.
        threads: that share the work.
        read: by the size of what is read, the smallest first.
        gemm: products of matrices.
    """

    processor: str
    isa: dict[str, str]
    threads: int
    read: tuple[Read, ...]
    gemm: tuple[Product, ...]

    def bandwidth(self, size: float) -> float:
        """Bytes a second at which so many can be read at most: what was seen with a buffer that is no larger, or with
        any larger one."""
        least = max((r.bytes for r in self.read if r.bytes <= size), default=0)
        return max(r.bytes_per_second for r in self.read if r.bytes >= least)

    def flops(self, itemsize: int) -> float:
        """Operations a second of products of a type with so many bytes an element: narrow ones can be widened."""
        exact = [p.flops_per_second for p in self.gemm if p.dtype == "float32"]
        return max(exact if itemsize > 2 else [p.flops_per_second for p in self.gemm])

    def to_dict(self) -> dict[str, Any]:
        """As a report states them."""
        plain = asdict(self)
        return {**plain, "read": list(plain["read"]), "gemm": list(plain["gemm"])}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Ceilings:
        """Those of a report."""
        read, gemm = (Read(**r) for r in plain["read"]), (Product(**p) for p in plain["gemm"])
        return cls(plain["processor"], plain["isa"], plain["threads"], tuple(read), tuple(gemm))

    def __str__(self) -> str:
        reads = ", ".join(f"{r.bytes / MIB:.3g} MiB {r.bytes_per_second / 1e9:.3g}" for r in self.read)
        kinds: dict[str, list[Product]] = {}
        for product in self.gemm:
            kinds.setdefault(product.dtype, []).append(product)
        products = "; ".join(
            f"{kind} " + ", ".join(f"{p.m}x{p.n}x{p.k} {p.flops_per_second / 1e9:.3g}" for p in own)
            for kind, own in kinds.items()
        )
        return (
            f"{self.processor}, torch for {self.isa['torch']}, host kernels for {self.isa['native']}, {self.threads} "
            f"thread{'s' if self.threads > 1 else ''}. Measured ceilings: reads, GB/s: {reads}; products, GFLOP/s: "
            f"{products}"
        )


def measured_ceilings(sizes: Sequence[int] = ()) -> Ceilings:
    """The ceilings of this CPU with torch's threads; what this process has measured already is not measured again.

    Args:
        sizes: bytes of further buffers to read, such as the weights of a family; above the largest of `SIZES` they are
            far beyond the caches all the same.
    """
    threads = torch.get_num_threads()
    wanted = sorted({*SIZES, *(size for size in sizes if 0 < size < SIZES[-1])})
    isa = {
        "torch": torch.backends.cpu.get_cpu_capability(),
        "native": "none" if host.unusable() is not None else host.isa(),
    }
    reads = streamed(tuple(wanted), threads)
    gemm = tuple(product for dtype in TYPES for product in products(dtype, threads))
    return Ceilings(processor_name(), isa, threads, reads, gemm)


@lru_cache
def streamed(sizes: tuple[int, ...], threads: int) -> tuple[Read, ...]:
    """How fast buffers of so many bytes are read by `threads` threads, torch's own; parts of one buffer."""
    del threads  # of the key: others read at another speed
    with torch.inference_mode():
        buffer = torch.ones(-(-max(sizes) // 4))
        return tuple(Read(size, size / read_seconds(buffer[: -(-size // 4)])) for size in sizes)


def read_seconds(buffer: Tensor) -> float:
    """The least seconds in which a buffer is read, by torch's sum or as weights of the host kernels."""
    ways: list[Callable[[], object]] = [buffer.sum]
    rows = buffer.numel() // COLUMNS
    if rows and host.unusable() is None:
        call = Fused(torch.ones(1, COLUMNS), buffer[: rows * COLUMNS].view(rows, COLUMNS), None)
        if FUSED_LINEAR.reason("cpu", call) is None:
            ways.append(lambda: FUSED_LINEAR(call, "cpu"))
    return min(least_seconds(way, READ_SECONDS / len(ways)) for way in ways)


@lru_cache
def products(dtype: torch.dtype, threads: int) -> tuple[Product, ...]:
    """How fast products of a type are by `threads` threads, torch's own; those that would take too long are left out,
    but for the smallest."""
    del threads
    found: list[Product] = []
    begun = time.perf_counter()
    with torch.inference_mode():
        for m, n, k in SHAPES:
            left = begun + PRODUCT_SECONDS - time.perf_counter()
            if found and 2 * (FEWEST + 1) * 2 * m * n * k / found[-1].flops_per_second > left:
                break
            x, weight = torch.ones(m, k, dtype=dtype), torch.ones(n, k, dtype=dtype)
            seconds, by = fastest_product(x, weight, PRODUCT_SECONDS / len(SHAPES))
            found.append(Product(str(dtype).removeprefix("torch."), m, n, k, 2 * m * n * k / seconds, by))
    return tuple(found)


def fastest_product(x: Tensor, weight: Tensor, seconds: float) -> tuple[float, str]:
    """The least seconds of `x @ weight.T`, x [m, k] and weight [n, k] of one type, and which way took them."""
    ways: dict[str, Callable[[], object]] = {"torch": lambda: F.linear(x, weight)}
    if has_onednn(x.dtype):
        packed = pack(weight)
        ways["onednn"] = lambda: packed_linear(x, packed, None)
    return min((least_seconds(way, seconds / len(ways)), name) for name, way in ways.items())


def least_seconds(call: Callable[[], object], seconds: float) -> float:
    """The least time of a call, which is taken for about so many seconds behind one that warms up."""
    call()
    best, end = float("inf"), time.perf_counter() + seconds
    for turn in range(MOST):
        begun = time.perf_counter()
        if turn >= FEWEST and begun > end:
            break
        call()
        best = min(best, time.perf_counter() - begun)
    return best
