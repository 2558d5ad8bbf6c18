"""The laboratory: decoders, models and kernels measured; one row, one table, one page."""
