"""Draw the pictures of a protocol with each decoder, and score them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...atomic import write_json
from ...engine.decoding.spec import spell
from ..evaluate import Column, columns
from ..folder import open_folder
from ..journal import Journal
from ..samples import mean_by_key, mean_or_none, origin
from ...measure.statistics import bootstrap_ratio
from .base import Item, Protocol

if TYPE_CHECKING:
    from ...engine.engine import Engine
    from ...engine.sampling import SamplingParams

Progress = Callable[[str, int, int], None]


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

    The same call keeps the pictures that are complete and draws the others.

    Args:
        engine: a loaded engine.
        protocol: with its prompts.
        decoders: as `decoding.parse` reads them.
        folder: made if missing; gets `report.json` beside the pictures.
        sampling: None takes the family's defaults.
        seed: of the first picture; picture k of item i has `seed` + i * pictures + k.
        batch_size: pictures drawn together; a prompt's own pictures always go into one call.
        overwrite: drop what an earlier evaluation left in `folder`.
        command: how it was called, for the report.
        progress: called with (what, done, total).

    Raises:
        ValueError: impossible settings, or `folder` holds something else.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    chosen = columns(engine.family, decoders)
    warnings = engine.check_prompts([item.prompt for item in protocol.items])
    params = engine.family.sampling if sampling is None else sampling
    about = {
        **origin(engine, params, seed),
        "protocol": protocol.name,
        "prompts": sha256("\n".join(f"{item.key}\t{item.prompt}" for item in protocol.items).encode()).hexdigest(),
        "items": len(protocol.items),
        "decoders": [spell(column.decoder) for column in chosen],
        "batch": batch_size,
        "dtype": str(engine.dtype).removeprefix("torch."),
    }
    journal = open_folder(folder, about, overwrite)
    rows: list[dict[str, Any]] = []
    for turn, column in enumerate(chosen):
        where = folder / "images" / column.folder
        draw(engine, protocol, column, turn, where, params, seed, batch_size, journal, progress)
        rows.append(describe(protocol, column, turn, where, journal))
    report = {
        **about,
        "command": command,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "official": protocol.official,
        "pictures": protocol.pictures,
        "notes": remarks(protocol, warnings),
        "rows": rows,
    }
    # A scorer that fails must not cost what drawing has found.
    write_json(folder / "report.json", report)
    for row, column in zip(rows, chosen, strict=True):
        score = protocol.score(folder / "images" / column.folder, str(engine.family.device))
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


def draw(
    engine: Engine,
    protocol: Protocol,
    column: Column,
    turn: int,
    folder: Path,
    params: SamplingParams,
    seed: int,
    batch_size: int,
    journal: Journal,
    progress: Progress | None,
) -> None:
    """Draw and write the items that are not complete."""
    n = protocol.pictures
    todo: list[tuple[int, Item]] = [
        (i, item)
        for i, item in enumerate(protocol.items)
        if (turn, i) not in journal.records or not protocol.complete(folder, item)
    ]
    done, total = len(protocol.items) - len(todo), len(protocol.items)
    if progress is not None:
        progress(column.label, done, total)
    together = max(1, batch_size // n)
    for start in range(0, len(todo), together):
        part = todo[start : start + together]
        begun = time.perf_counter()
        result = engine.generate(
            [item.prompt for _, item in part],
            decoder=column.decoder,
            sampling=params,
            seed=[seed + i * n for i, _ in part],
            num_images=n,
            batch_size=batch_size,
        )
        seconds = (time.perf_counter() - begun) / len(part)
        for place, (i, item) in enumerate(part):
            own = slice(place * n, (place + 1) * n)
            protocol.write(folder, item, result.images[own])
            stats = [s.to_dict() for s in result.stats[own]]
            kept = [{key: s[key] for key in ("forwards", "rejection", "coverage")} for s in stats]
            journal.add((turn, i), {"seconds": seconds, "stats": kept})
        done += len(part)
        if progress is not None:
            progress(column.label, done, total)


def describe(protocol: Protocol, column: Column, turn: int, folder: Path, journal: Journal) -> dict[str, Any]:
    """What a decoder's pictures cost."""
    records = [journal.records[turn, i] for i in range(len(protocol.items))]
    seconds, pictures = [record["seconds"] for record in records], [protocol.pictures] * len(records)
    stats = [s for record in records for s in record["stats"]]
    return {
        "label": column.label,
        "decoder": column.decoder.name,
        "spec": spell(column.decoder),
        "folder": str(folder),
        "seconds_per_image": {
            "mean": sum(seconds) / sum(pictures),
            "ci95": list(bootstrap_ratio(seconds, pictures)),
        },
        "forwards": mean_by_key([s["forwards"] for s in stats]),
        "rejection": mean_or_none([s["rejection"] for s in stats]),
        "coverage": mean_or_none([s["coverage"] for s in stats]),
        "scores": None,
        "note": None,
    }
