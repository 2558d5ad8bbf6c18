"""Speed of the hub's models beside `transformers.generate` with its static cache, on random weights.

Both draw image by image in turns, from the tokens of a prompt to the codes of an image. Acceptance of MuLo-SD is
planted: an input, not a result. Beside the seconds stand those of the processor, which change less with what else the
machine runs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from ...engine.decoding.mulo import MuloSD
from ...engine.decoding.spec import parse
from ...engine.engine import Engine
from ..rows import rows_of
from ..run import origin
from ..statistics import spread
from ..table import figure, named, table, total
from .planted import Planted
from .references import REFERENCES, Reference
from .synthetic import WARNING, Contestant, Progress, decoder_contestant

if TYPE_CHECKING:
    from rich.table import Table

THEIRS = "transformers"
ACCEPTED = (0.9, 0.95, 0.99)


def bench_beside(
    model: str,
    *,
    grid: int = 16,
    decoders: Sequence[str] | None = None,
    accept: Sequence[float] = ACCEPTED,
    images: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time decoders of a model and transformers' own loop, image by image in turns.

    Args:
        model: out of `REFERENCES`.
        grid: side of the image in codes, even.
        decoders: besides `serial`; None takes ZipAR, Jacobi, and MuLo-SD where the model has a draft.
        accept: shares of candidates that MuLo-SD's verification accepts, a row each.
        images: timed images of each, behind one that warms up.
        seed: of the first image.
        progress: called with (what, done, total).

    Returns:
        A report of plain values; `synthetic` is true in it and in every row.

    Raises:
        ImportError: transformers is not installed.
        ValueError: an unknown model, or a number out of range.
    """
    if model not in REFERENCES:
        raise ValueError(f"there is no model {model!r}; choose from {', '.join(REFERENCES)}")
    if grid < 4 or grid % 2 or images < 1:
        raise ValueError(f"the grid must be even and at least 4, images at least 1, got {grid} and {images}")
    try:
        import transformers
    except ImportError as error:
        raise ImportError("the loop beside ours is transformers': pip install 'mulosd[hf]'") from error
    transformers.utils.logging.disable_progress_bar()
    with TemporaryDirectory() as folder:
        reference = REFERENCES[model](Path(folder), grid)
        engine = Engine(reference.family)
        contestants = [*ours(engine, reference, decoders, accept, grid)]
        theirs = Contestant(THEIRS, f"transformers {transformers.__version__}, static cache", reference.generate)
        theirs.forwards = {"prefill": 1, "serial": reference.tokens - 1}
        contestants.insert(0, theirs)
        count = (images + 1) * len(contestants)
        processor: list[list[float]] = [[] for _ in contestants]
        for run in range(images + 1):
            for number, one in enumerate(contestants):
                begun, worked = time.perf_counter(), time.process_time()
                with torch.inference_mode():
                    one.make(seed + run)
                if run:
                    one.seconds.append(time.perf_counter() - begun)
                    processor[number].append(time.process_time() - worked)
                if progress is not None:
                    progress("generating", run * len(contestants) + number + 1, count)
        parameters = reference.family.parameters()["ar"]
        own = origin(engine, reference.sampling, seed)
    return {
        "synthetic": True,
        "warning": WARNING,
        **own,
        "model": {"name": model, "grid": grid, "tokens": reference.tokens, "parameters": parameters},
        "timing": {"runs": images, "batch": 1, "warm_up": 1, "threads": torch.get_num_threads()},
        "rows": describe(contestants, processor, reference.tokens),
    }


def ours(
    engine: Engine, reference: Reference, decoders: Sequence[str] | None, accept: Sequence[float], grid: int
) -> list[Contestant]:
    """The decoders, `serial` first."""
    window = max(1, grid // 4)
    texts = ["serial", *([f"zipar:window={window}", "jacobi"] if decoders is None else decoders)]
    if decoders is None and reference.mulo is not None:
        texts.append(f"{reference.mulo}:window={window}:draft_window={window}:radius=1")
    features = reference.condition.features
    if reference.sampling.guided:
        null = reference.condition.null
        features = torch.cat([features, engine.family.null_features(1) if null is None else null])
    found = []
    for text in dict.fromkeys(texts):
        decoder = parse(text)
        each = [Planted.of(decoder, share) for share in accept] if isinstance(decoder, MuloSD) else [decoder]
        for one in each:
            resolved = one.resolve(engine.family)
            resolved.check_layout(engine.family)
            found.append(decoder_contestant(engine, resolved, reference.sampling, features))
    return found


def describe(
    contestants: Sequence[Contestant], processor: Sequence[Sequence[float]], tokens: int
) -> list[dict[str, Any]]:
    """A row each, compared with transformers' loop, the first one."""
    base = [spread(seconds[0])["median"] for seconds in ([one.seconds for one in contestants], processor)]
    rows = []
    for one, worked in zip(contestants, processor, strict=True):
        seconds, busy = spread(one.seconds), spread(worked)
        rows.append(
            {
                "synthetic": True,
                "decoder": one.decoder,
                "spec": one.spec,
                "settings": one.settings,
                "seconds_per_image": {**seconds, "runs": len(one.seconds)},
                "processor_seconds_per_image": {**busy, "runs": len(worked)},
                "tokens_per_second": tokens / seconds["median"],
                "forwards": one.forwards,
                "coverage": one.coverage,
                "speedup": {THEIRS: base[0] / seconds["median"], "processor": base[1] / busy["median"]},
            }
        )
    return rows


def beside_table(report: dict[str, Any]) -> Table:
    """The rows as a table."""
    model, rows = report["model"], rows_of(report)
    columns = [
        named([row["spec"] for row in report["rows"]], rows),
        figure("s/image", "seconds_per_image"),
        figure("p20-p80", "seconds_per_image", "{low:.2g}-{high:.2g}"),
        figure("tokens/s", "tokens_per_second", "{value:.1f}"),
        figure("processor s", "processor_seconds_per_image"),
        total("fwd", "forwards"),
        figure("× transformers", f"speedup.{THEIRS}", "{value:.2f}"),
        figure("× processor", "speedup.processor", "{value:.2f}"),
        figure("res", "coverage", "{value:.0f} %", 100),
    ]
    return table(
        rows,
        columns,
        f"SYNTHETIC {model['name']}, {model['parameters'] / 1e6:.0f} M parameters, {model['grid']}x{model['grid']} "
        f"codes, float32, {report['timing']['threads']} thread(s): {report['warning']}",
        f"{report['device']}.",
    )
