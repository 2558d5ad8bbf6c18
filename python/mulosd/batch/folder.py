"""The folder of a batch: images, a row for each, a row for each error, and what it comes to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..cli.drawing import image_file
from ..cli.jobs import Job, missing, printable_path
from ..engine.atomic import append_line, write_json
from ..engine.lock import locked

IMAGES, ERRORS, MANIFEST = "images.jsonl", "errors.jsonl", "manifest.json"


class Folder:
    """Where a batch goes; one process writes at a time.

    `images.jsonl` has a row for each image, which is there before its row; `errors.jsonl` one for each line or image of
    the latest call that failed; `manifest.json` the counts, and whether all that was asked for is there.

    Args:
        path: it is made where it is missing, its parent is not.

    Raises:
        ValueError: it cannot be a folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.is_dir():
            raise ValueError(f"--out {path} is a file; name a folder")
        if not path.absolute().parent.is_dir():
            parent = path.absolute().parent
            raise ValueError(f"--out {path}: there is no directory {parent}; create it first (mkdir -p '{parent}')")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out; ValueError when one is at work."""
        self.path.mkdir(exist_ok=True)
        with locked(self.path, "a batch into", name="batch"):
            (self.path / ERRORS).unlink(missing_ok=True)
            yield

    def within(self, job: Job) -> Job:
        """A job whose path begins with the folder's."""
        if job.path is None:
            raise RuntimeError("the jobs of a batch have paths")
        return replace(job, path=self.path / job.path)

    def missing(self, jobs: Sequence[Job]) -> list[int]:
        """Numbers of the jobs, with paths of `within`, that are yet to be drawn.

        An image that has no row, because the process ended between the two, is looked into, and gets its row.

        Raises:
            ValueError: a file of that name is there, but another image.
        """
        told = self._told()
        unsure = []
        for number, job in enumerate(jobs):
            row = told.get(self._name(job))
            known = row is not None and job.difference(row["settings"]) is None
            if not (known and job.path is not None and job.path.exists()):
                unsure.append(number)
        todo = {unsure[i] for i in missing([jobs[i] for i in unsure])}
        for number in unsure:
            if number not in todo:
                self._append(jobs[number], None)
        return sorted(todo)

    def _told(self) -> dict[str, dict[str, Any]]:
        """The latest row of each image by its name; a line that was cut off when a machine failed says nothing."""
        found: dict[str, dict[str, Any]] = {}
        path = self.path / IMAGES
        if path.is_file():
            with path.open("rb") as file:
                for line in file:
                    try:
                        row = json.loads(line)
                        found[str(row["file"])] = {"settings": dict(row["settings"])}
                    except (ValueError, KeyError, TypeError):
                        continue
        return found

    def _name(self, job: Job) -> str:
        if job.path is None:
            raise RuntimeError("the jobs of a batch have paths")
        return printable_path(job.path.relative_to(self.path))

    def keep(self, job: Job, data: bytes, stats: dict[str, Any]) -> None:
        """Write a finished image, then its row."""
        if job.path is None:
            raise RuntimeError("the jobs of a batch have paths")
        with image_file(job.path) as file:
            file.write(data)
        self._append(job, stats)

    def _append(self, job: Job, stats: dict[str, Any] | None) -> None:
        append_line(self.path / IMAGES, json.dumps({"file": self._name(job), "settings": job.settings, "stats": stats}))

    def fail(self, place: str, error: str, job: Job | None = None) -> None:
        """Write a row for a line that cannot be, or an image that failed."""
        row = {"place": place, "error": error}
        if job is not None:
            row |= {"file": self._name(job), "prompt": job.prompt, "seed": str(job.seed)}
        append_line(self.path / ERRORS, json.dumps(row))

    def close(self, values: dict[str, Any]) -> None:
        """Write the manifest."""
        write_json(self.path / MANIFEST, values)
