"""The report of an evaluation as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
import textwrap
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .machine import weights_of
from .measures import COSTS, MEASURES, Measure, known, seconds
from .plots import chart, colour, pyplot
from .rows import Figure, Row, rows_of

if TYPE_CHECKING:
    from .evaluate import Evaluation
    from .run import Sample

SIDE = 384  # px: larger images are reduced
SMALLEST = 192  # px: smaller ones are shown enlarged up to this
REAL = 8  # real images shown
QUALITY = 88


def check_page() -> None:
    """ImportError names what the report needs and is not installed."""
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise ImportError("the report needs jinja2: pip install 'mulosd[bench]'") from None
    pyplot("the report")


def render(evaluation: Evaluation, show: int) -> str:
    """The page of an evaluation.

    Args:
        evaluation: with its images.
        show: prompts whose images are shown side by side.

    Raises:
        ImportError: jinja2 or matplotlib is missing.
    """
    check_page()
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (files(__package__) / name).read_text(encoding="utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    report = evaluation.report
    rows = rows_of(report)
    shown = known(rows)
    return environment.get_template("page.html.j2").render(
        report=report,
        facts=facts(report),
        decoders=[(n, r.what["label"], r.what["spec"], colour(n - 1)) for n, r in enumerate(rows, start=1)],
        measures=shown,
        summary=[summary(row, shown) for row in rows],
        references=reference_rows(report["reference"], shown),
        differences=[(row.what["label"], differences(row, shown)) for row in rows if row.values["difference"]],
        charts=[(m.title, chart(m, rows, lines(m, report["reference"]))) for m in shown],
        real=real_images(evaluation),
        gallery=[gallery_row(evaluation, i) for i in range(min(show, len(report["prompts"])))],
        side=min(SIDE, max(SMALLEST, evaluation.samples[0].images[0].shape[0])),
        grid=any(one.resampled for one in evaluation.samples),
        meanings=[*COSTS, *((m.title, m.meaning) for m in shown)],
        absent=[m.title for m in MEASURES if m not in shown],
    )


def facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    """What a reader has to know of where the figures come from."""
    reference = report["reference"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    sampling = ", ".join(f"{name} {value}" for name, value in report["sampling"].items())
    found = [
        ("Family", report["family"]),
        ("Images", f"{len(report['prompts'])} prompts x {report['num_images']}, seeds from {report['seed']}, "
                     f"in batches of {report['batch']}"),
        ("Compared with", "nothing" if reference is None else reference["name"]),
        ("Right are", report["counted"] or "not known: there is no grader"),
        ("Sampling", sampling),
        ("Device", f"{report['device']}, {weights_of(report)}"),
        ("Versions", versions),
        ("Commit", report["commit"] or "an installed package"),
        ("Date", report["date"]),
    ]  # fmt: skip
    return [*found, ("Command", report["command"])] if report["command"] else found


class Cell(NamedTuple):
    """A cell of a table: "better" or "worse" where a difference is more than chance."""

    value: str
    interval: str = ""
    verdict: str = ""


def cell(found: Figure | None, digits: int, sign: str = "", verdict: str = "") -> Cell:
    """A value with its interval; `sign` is "+" for differences."""
    if found is None:
        return Cell("–")
    value, low, high = (f"{x:{sign}.{digits}f}" for x in (found.value, found.low, found.high))
    return Cell(value, "" if low == high else f"{low} to {high}", verdict)


def summary(row: Row, shown: list[Measure]) -> list[Cell]:
    """The cells of a decoder in the first table."""
    coverage = row.figure("coverage")
    return [
        cell(seconds(row), 3),
        cell(row.figure("speedup"), 2),
        cell(row.total("forwards"), 0),
        Cell("–" if coverage is None else f"{100 * coverage.value:.1f} %"),
        *(cell(m.of(row), m.digits) for m in shown),
    ]


def reference_row(reference: dict[str, Any], name: str) -> Row | None:
    """Images that no decoder made, "perfect" or "reconstruction", as a row; None where there are none."""
    if reference[name] is None:
        return None
    values = dict(reference[name])
    if name == "perfect":
        values["diversity"] = {"overall": reference["diversity"]}
    return Row({"label": name}, values)


def reference_rows(reference: dict[str, Any] | None, shown: list[Measure]) -> list[tuple[str, list[Cell]]]:
    """Rows of images that no decoder made."""
    if reference is None:
        return []
    named = {"real images": "perfect", "reconstructed": "reconstruction"}
    found = [(title, reference_row(reference, name)) for title, name in named.items()]
    return [(title, [cell(m.of(row), m.digits) for m in shown]) for title, row in found if row is not None]


def lines(measure: Measure, reference: dict[str, Any] | None) -> dict[str, float]:
    """Values of real images to draw into a chart."""
    if measure.better == "near 1":
        return {"no seam": 1.0}
    if reference is None:
        return {}
    name, title = ("perfect", "real") if measure.key == "overall" else ("reconstruction", "reconstruction")
    row = reference_row(reference, name)
    found = None if row is None else measure.of(row)
    return {} if found is None else {title: found.value}


def differences(row: Row, shown: list[Measure]) -> list[Cell]:
    """The cells of a decoder in the second table."""
    cells = []
    for m in shown:
        found = row.figure(f"difference.{m.key}")
        if found is None:
            cells.append(Cell("–"))
            continue
        sign = 0 if found.low <= 0 <= found.high else (1 if found.value > 0 else -1)
        verdict = "" if not sign else ("better" if (sign > 0) == (m.better == "higher") else "worse")
        cells.append(cell(found.times(m.factor), m.digits, "+", verdict))
    return cells


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """An image, reduced to at most `SIDE` px, as a WebP data URI."""
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def real_images(evaluation: Evaluation) -> list[str]:
    real = None if evaluation.reference is None else evaluation.reference.real.images
    return [] if real is None else [data_uri(p) for p in real[:REAL]]


def outline(mask: NDArray[np.bool_]) -> str:
    """The borders of the marked tokens as an SVG path, in units of a token."""
    padded = np.pad(mask, 1)
    upright = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])
    level = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])
    return "".join([*(f"M{c} {r}v1" for r, c in upright), *(f"M{c} {r}h1" for r, c in level)])


def gallery_row(evaluation: Evaluation, prompt: int) -> dict[str, Any]:
    """A prompt with the image of every decoder, all of one seed."""
    report = evaluation.report
    number = prompt * report["num_images"]
    return {
        "prompt": textwrap.shorten(report["prompts"][prompt], 300, placeholder="…"),
        "seed": report["seed"] + number,
        "images": [shown_image(one, number) for one in evaluation.samples],
    }


def shown_image(sample: Sample, number: int) -> dict[str, Any]:
    masks = np.concatenate([part.numpy() for part in sample.resampled]) if sample.resampled else None
    mask = None if masks is None else masks[number]
    return {
        "label": sample.label,
        "image": data_uri(sample.images[number]),
        "outline": "" if mask is None else outline(mask),
        "grid": 0 if mask is None else len(mask),
        "share": None if mask is None else float(mask.mean()),
    }
