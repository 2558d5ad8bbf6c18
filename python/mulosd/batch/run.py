"""A batch from its list to its manifest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .._version import __version__
from ..cli.jobs import Job
from ..cli.prompt_list import COLUMNS, ID, read_prompt_list
from .folder import Folder
from .painter import Painters, Recipe


@dataclass
class Counts:
    """What a batch comes to.

    Attributes:
        rows: of the list.
        images: that they ask for; the same one asked for twice is one.
        found: of them were there before.
        drawn: by this call.
        failed: images that failed, and rows that cannot be.
    """

    rows: int = 0
    images: int = 0
    found: int = 0
    drawn: int = 0
    failed: int = 0

    @property
    def complete(self) -> bool:
        """Whether every row has its images."""
        return not self.failed and self.found + self.drawn == self.images


class Batch:
    """One call.

    Args:
        folder: where images go.
        fail: told of each failure in words.
        progress: told how many images are there, and of how many.
    """

    def __init__(self, folder: Folder, fail: Callable[[str], None], progress: Callable[[int, int], None]) -> None:
        self.folder, self.progress = folder, progress
        self._tell = fail
        self.counts = Counts()
        self.jobs: list[Job] = []
        self.places: list[str] = []
        self.warnings: dict[str, None] = {}

    def failed(self, place: str, error: str, job: Job | None = None) -> None:
        self.counts.failed += 1
        self.folder.fail(place, error, job)
        self._tell(error if error.startswith(place) else f"{place}: {error}")

    def read(self, name: str, painters: Painters) -> None:
        """Make jobs of a list; lines that cannot be become rows of errors."""

        def wrong(place: str, error: ValueError) -> None:
            self.counts.rows += 1
            self.failed(place, str(error))

        asked = read_prompt_list(name, "", columns=(*COLUMNS, ID), wrong=wrong)
        self.counts.rows += len(asked)
        taken: dict[Path | None, int] = {}
        for prepared in painters.prepare(asked):
            place = prepared.asked.place
            if prepared.error is not None:
                self.failed(place, prepared.error)
            self.warnings.update(dict.fromkeys(prepared.warnings))
            for job in map(self.folder.within, prepared.jobs):
                before = taken.setdefault(job.path, len(self.jobs))
                if before == len(self.jobs):
                    self.jobs.append(job)
                    self.places.append(place)
                elif job.difference(self.jobs[before].settings) is not None:
                    self.failed(place, f"{job.file} is what {self.places[before]} names, and another image", job)
        self.counts.images = len(self.jobs)

    def draw(self, painters: Painters, todo: Sequence[int]) -> None:
        """Draw jobs; each image is on disk before the next one is looked at."""
        counts = self.counts
        self.progress(counts.found, counts.images)
        with closing(painters.draw([self.jobs[i] for i in todo])) as drawn:
            for one in drawn:
                number = todo[one.number]
                job = self.jobs[number]
                if one.data is None:
                    self.failed(self.places[number], one.error or "it failed", job)
                else:
                    self.folder.keep(job, one.data, one.stats or {})
                    counts.drawn += 1
                self.progress(counts.found + counts.drawn, counts.images)


def run(
    name: str,
    folder: Folder,
    recipe: Recipe,
    painters: Painters,
    *,
    overwrite: bool = False,
    fail: Callable[[str], None] = lambda text: None,
    warn: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Counts:
    """Draw what a list asks for and a folder lacks; whatever ends it, the manifest says how far it came.

    Args:
        name: of the list, see `read_prompt_list`; a column `id` may name images.
        folder: where they go.
        recipe: what the painters were made with.
        painters: who draws.
        overwrite: draw what is there again.
        fail, warn: told in words of what fails, and of words that the family does not know.
        progress: told of images done and asked for.

    Raises:
        ValueError: the list cannot be read, another process writes into the folder, or a file in it is another image.
        KeyboardInterrupt: Ctrl-C, once all that was finished by then is written.
    """
    with folder.held():
        batch = Batch(folder, fail, progress)
        batch.read(name, painters)
        todo = list(range(len(batch.jobs))) if overwrite else folder.missing(batch.jobs)
        batch.counts.found = len(batch.jobs) - len(todo)
        for text in batch.warnings:
            warn(text)
        try:
            batch.draw(painters, todo)
        finally:
            folder.close(manifest(name, recipe, batch.counts))
    return batch.counts


def manifest(name: str, recipe: Recipe, counts: Counts) -> dict[str, Any]:
    """What `manifest.json` holds."""
    settings = asdict(recipe)
    del settings["under_way"]
    return {"version": __version__, "complete": counts.complete, "list": name, **asdict(counts), "recipe": settings}
