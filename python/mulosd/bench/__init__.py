"""The engine of `mulosd bench kernels`: what the ops cost beside their floors and beside what others would use."""

from __future__ import annotations

from .rows import Row, read_csv, write_csv
from .run import OPS, bench_kernels

__all__ = ["OPS", "Row", "bench_kernels", "read_csv", "write_csv"]
