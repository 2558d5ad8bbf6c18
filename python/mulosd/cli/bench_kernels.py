"""`mulosd bench kernels`: the ops beside their floors and peers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..atomic import write_json
from .console import count_bar, examples, stdout
from .files import check_file
from .options import DeviceOption

EXAMPLES = examples(
    "mulosd bench kernels --quick",
    "mulosd bench kernels --device cuda --csv kernels.csv --plot kernels.png",
    "mulosd bench kernels --op verify_attention --op kv_write --backend triton --backend peers --device cuda",
)


def kernels(
    op: Annotated[
        list[str] | None, typer.Option(help="Only this op; may be given several times.", show_default="all")
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(help="Only cuda, triton, torch or peers; may be given several times.", show_default="all"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and smaller shapes, less time each.")] = False,
    device: DeviceOption = "cpu",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the rows to this file.", show_default=False)
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Also write the rows to this file.", show_default=False)
    ] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="Also draw the medians, as PNG, SVG or PDF.", show_default=False)
    ] = None,
) -> None:
    """Time every kernel beside its floor and its peers; a wrong result is not timed, and the exit code is then 1."""
    for option, file in (("--json", json_file), ("--csv", csv_file), ("--plot", plot_file)):
        if file is not None:
            check_file(option, file)
    if plot_file is not None and plot_file.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--plot {plot_file}: name a .png, .svg or .pdf file")

    from ..bench import bench_kernels, write_csv
    from ..bench.report import as_json, kernel_table, plot, reasons

    with count_bar() as bar:
        rows = bench_kernels(op, backend, device=device, quick=quick, progress=bar)
    if json_file is not None:
        write_json(json_file, as_json(rows))
    if csv_file is not None:
        write_csv(csv_file, rows)
    stdout.print(kernel_table(rows))
    if rows:
        about = rows[0]
        stdout.print(f"{about.device}; {about.versions}; {about.commit} {about.date}", markup=False, soft_wrap=True)
    for reason in reasons(rows):
        stdout.print(reason, markup=False, soft_wrap=True)
    if plot_file is not None:
        plot(rows, plot_file)
    if any(row.status == "failed" for row in rows):
        raise typer.Exit(1)
