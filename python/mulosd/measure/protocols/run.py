"""Draw the images of a protocol with each decoder, and score them."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...engine.atomic import write_json
from ...engine.decoding.spec import spell
from ...engine.paths import expanded
from ...engine.stats import GenerationStats
from ..evaluate import samples_of
from ..journal import open_folder
from ..machine import now
from ..measures import seconds
from ..rows import rows_of
from ..run import Job, Progress, costs, draw, origin
from ..table import Column, figure, named, table, total
from .base import Protocol

if TYPE_CHECKING:
    from rich.table import Table

    from ...engine.engine import Engine
    from ...engine.sampling import SamplingParams


def run_protocol(
    engine: Engine,
    protocol: Protocol,
    decoders: Sequence[str],
    folder: Path,
    *,
    sampling: SamplingParams | None = None,
    seed: int = 0,
    batch_size: int = 1,
    overwrite: bool = False,
    command: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write `folder`/images/DECODER in the layout of a protocol, call its scorer where there is one, and report.

    The same call keeps the images that are complete and draws the others.

    Args:
        protocol: with its prompts; image k of item i has `seed` + i * images + k.
        folder: gets `report.json` beside the images.
        batch_size: images decoded together; a prompt's own images always go into one call.
        engine, decoders, sampling, seed, overwrite, command, progress: see `evaluate`.

    Raises:
        ValueError: impossible settings, or `folder` holds something else.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    samples = samples_of(engine.family, decoders)
    warnings = engine.check_prompts([item.prompt for item in protocol.items])
    params = engine.family.sampling if sampling is None else sampling
    about = {
        **origin(engine, params, seed),
        "protocol": protocol.name,
        "prompts": sha256("\n".join(f"{item.key}\t{item.prompt}" for item in protocol.items).encode()).hexdigest(),
        "items": len(protocol.items),
        "pictures": protocol.images,
        "decoders": [spell(one.decoder) for one in samples],
        "batch": batch_size,
        "dtype": str(engine.dtype).removeprefix("torch."),
    }
    folder = expanded(folder)
    folders = [folder / "images" / one.folder for one in samples]
    n, together = protocol.images, max(1, batch_size // protocol.images)
    asked = [item.prompt for item in protocol.items for _ in range(n)]
    starts = range(0, len(asked), n * together)
    jobs = [Job(list(range(start, min(start + n * together, len(asked)))), timed=True) for start in starts]
    items = [[protocol.items[i // n] for i in job.prompts[::n]] for job in jobs]

    def complete(number: int, turn: int) -> bool:
        return all(protocol.complete(folders[turn], item) for item in items[number])

    with open_folder(folder, about, overwrite) as journal:
        for drawn in draw(
            engine, asked, jobs, samples, params, seed, journal, progress,
            batch_size=batch_size, warm_up=False, replay=False, kept=complete,
        ):  # fmt: skip
            for place, item in enumerate(items[drawn.number]):
                # Complete ones stand, should a job have lost others.
                if not protocol.complete(folders[drawn.turn], item):
                    protocol.write(folders[drawn.turn], item, drawn.images[place * n : (place + 1) * n])
    for (number, turn), record in journal.records.items():
        stats = [GenerationStats(**s) for s in record["stats"]]
        samples[turn].cost(jobs[number], record["seconds"], stats)
    rows = [
        {
            "label": one.label,
            "decoder": one.decoder.name,
            "spec": spell(one.decoder),
            "folder": str(where),
            **costs(one, n),
            "scores": None,
            "note": None,
        }
        for one, where in zip(samples, folders, strict=True)
    ]
    report: dict[str, Any] = {
        **about,
        "command": command,
        "date": now(),
        "official": protocol.official,
        "notes": remarks(protocol, warnings),
        "rows": rows,
    }
    # A scorer that fails must not cost what drawing has found.
    write_json(folder / "report.json", report)
    for row, where in zip(rows, folders, strict=True):
        score = protocol.score(where, str(engine.family.device))
        row["scores"], row["note"] = score.values, score.note
    report["notes"] += [f"{row['label']}: {row['note']}" for row in rows if row["note"]]
    write_json(folder / "report.json", report)
    return report


def remarks(protocol: Protocol, warnings: list[str]) -> list[str]:
    """What a reader of the scores should know."""
    notes = []
    if len(protocol.items) != protocol.official:
        notes.append(
            f"these are {len(protocol.items)} prompts, the protocol has {protocol.official}: the scores are not those "
            f"that are published"
        )
    if warnings:
        notes.append(f"{len(warnings)} prompts have words that the family does not know, the first: {warnings[0]}")
    return notes


def protocol_table(report: dict[str, Any]) -> Table:
    """A row a decoder: what it cost, its scores where there are any, and where the images are."""
    rows = rows_of(report)
    names = list(dict.fromkeys(name for row in report["rows"] for name in row["scores"] or ()))
    return table(
        rows,
        [
            named([row.what["label"] for row in rows], rows),
            Column("s/image", lambda row: f"{seconds(row).value:.3g}"),
            total("fwd", "forwards"),
            figure("res", "coverage", "{value:.1f}", 100),
            *(figure(name, f"scores.{name}", "{value:.2f}") for name in names),
            Column("images", lambda row: row.what["folder"], left=True),
        ],
        f"{report['family']}: {report['protocol']}, {report['items']} prompts x {report['pictures']}",
        f"{report['device']}. fwd: forwards; res: resampled, %",
    )
