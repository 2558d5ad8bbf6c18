"""`mulosd bench kernels`: the ops beside their floors and peers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .bench_options import JsonOption, finish
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
        typer.Option(help="Only cuda, triton, cpu, torch or peers; may be given several times.", show_default="all"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and smaller shapes, less time each.")] = False,
    device: DeviceOption = "cpu",
    json_file: JsonOption = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Also write the rows to this file.", show_default=False)
    ] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="Also draw the medians, as PNG, SVG or PDF.", show_default=False)
    ] = None,
) -> None:
    """Time every kernel beside its floor and its peers; a wrong result is not timed, and the exit code is then 1.

    The floor is by a GPU's data sheet, or by what the threads of a CPU read and multiply at most, measured first.
    """
    for option, file in (("--json", json_file), ("--csv", csv_file), ("--plot", plot_file)):
        if file is not None:
            check_file(option, file)

    from ..measure.ceilings import measured_ceilings
    from ..measure.kernels.report import as_report, kernel_tables, plot_kernels, reasons
    from ..measure.kernels.run import bench_kernels, usable_device
    from ..measure.plots import check_plot
    from ..measure.rows import write_csv

    if plot_file is not None:
        check_plot(plot_file)
    ceilings = measured_ceilings() if usable_device(device).type == "cpu" else None
    with count_bar() as bar:
        rows = bench_kernels(op, backend, device=device, quick=quick, ceilings=ceilings, progress=bar)
    if csv_file is not None:
        write_csv(csv_file, rows)
    finish(as_report(rows, ceilings), json_file, *kernel_tables(rows))
    if rows:
        about = rows[0].machine
        versions = ", ".join(f"{name} {version}" for name, version in about.versions.items())
        stdout.print(f"{about.device}; {versions}; {about.commit} {about.date}", markup=False, soft_wrap=True)
    if ceilings is not None:
        stdout.print(str(ceilings), markup=False, soft_wrap=True)
    for reason in reasons(rows):
        stdout.print(reason, markup=False, soft_wrap=True)
    if plot_file is not None:
        plot_kernels(rows, plot_file)
    if any(row.what["status"] == "failed" for row in rows):
        raise typer.Exit(1)
