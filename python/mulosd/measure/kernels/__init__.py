"""What the ops cost beside their floors and beside what others would use: `mulosd bench kernels`."""

from __future__ import annotations

from .run import OPS, bench_kernels

__all__ = ["OPS", "bench_kernels"]
