"""Rows of Parquet files, read by pyarrow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..engine.paths import expanded

EXTRA = "Parquet files are read by pyarrow: pip install 'mulosd[parquet]'"
ROWS = 4096


def parquet_rows(path: Path) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """The names of the columns of a Parquet file, and its rows as they are read.

    Missing values are None, NaN too; a whole float, which tables write where numbers are missing, is an int.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: there is no such file, or it is no Parquet; the message names it.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(EXTRA) from error

    path = expanded(path)

    def refused(error: Exception) -> ValueError:
        return ValueError(f"{path} is no Parquet file that can be read: {' '.join(str(error).split())}")

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise refused(error) from error

    def rows() -> Iterator[dict[str, Any]]:
        with file:
            batches = file.iter_batches(batch_size=ROWS)
            while True:
                try:
                    batch = next(batches, None)
                except (pa.ArrowException, OSError) as error:
                    raise refused(error) from error
                if batch is None:
                    return
                for row in batch.to_pylist():
                    yield {name: plain(value) for name, value in row.items()}

    return list(file.schema_arrow.names), rows()


def plain(value: Any) -> Any:
    """A cell without what tables put for missing numbers."""
    if isinstance(value, float):
        return None if math.isnan(value) else int(value) if value.is_integer() else value
    return value
