"""Images that are written as they are finished, so that whatever happens later leaves them."""

from __future__ import annotations

import json
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from .._version import __version__
from ..engine.atomic import atomic, is_stream, write_json
from ..engine.lock import locked
from ..screen import printable
from .console import Lines, silence
from .image_files import read_settings, save_image

if TYPE_CHECKING:
    from .. import Engine
    from ..engine.conditioning import Condition
    from ..engine.decoding import Decoder
    from ..engine.request import Update
    from ..engine.sampling import SamplingParams
    from ..engine.stats import Progress

# Images under way at a time; each holds rows of the KV caches.
UNDER_WAY = 8


@dataclass(frozen=True, eq=False)
class Job:
    """One image to draw.

    Args:
        prompt, seed, decoder: of the image; the decoder is resolved.
        path: file to write; None is standard output.
        settings: what the file is to remember, as texts.
        features: its precomputed condition, or None.
    """

    prompt: str
    seed: int
    decoder: Decoder
    path: Path | None
    settings: dict[str, str]
    features: Condition | None = None

    @property
    def entry(self) -> dict[str, Any]:
        """What --stats holds of it before it is drawn."""
        named = {k: v for k, v in self.settings.items() if k not in ("decoder", "version")}
        return {"file": self.file, **named, "seed": self.seed, "spelling": self.settings["decoder"]}

    @property
    def file(self) -> str:
        """The path as it can be printed and stored, whatever its bytes."""
        return str(self.path or "-").encode(errors="surrogateescape").decode(errors="replace")

    def conflict(self) -> str | None:
        """How a file that is there differs from what this job would write; None when it is the same image."""
        found = None if self.path is None else read_settings(self.path)
        if found is None:
            return "is no image that this command wrote"
        for key in sorted({*self.settings, "features", "quantization"} - {"version"}):
            here, wanted = found.get(key), self.settings.get(key)
            if here != wanted:
                return f"was drawn with {key} {here!r}, not {wanted!r}"
        return None


def missing(jobs: Sequence[Job]) -> list[int]:
    """Numbers of the jobs whose files are not there yet.

    Raises:
        ValueError: a file of that name is there, but another image.
    """
    there = [i for i, job in enumerate(jobs) if job.path is not None and job.path.exists()]
    others = [(jobs[i], conflict) for i in there if (conflict := jobs[i].conflict()) is not None]
    if others:
        job, conflict = others[0]
        more = f" (and {len(others) - 1} more files are others)" if len(others) > 1 else ""
        raise ValueError(
            f"{job.file} exists already and {conflict}{more}: choose another folder (--output), or draw over it "
            f"(--overwrite)"
        )
    return [i for i in range(len(jobs)) if i not in set(there)]


@contextmanager
def patient_interrupt() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C is only noted, what is given tells whether it came; the second one interrupts at once."""
    came = False

    def note(number: int, frame: object) -> None:
        nonlocal came
        if came:
            raise KeyboardInterrupt
        came = True

    former = signal.getsignal(signal.SIGINT)
    try:
        # A shell that runs a command in the background has it ignore Ctrl-C.
        taken = former is not signal.SIG_IGN and signal.signal(signal.SIGINT, note) is not None
    except ValueError:  # not the main thread
        taken = False
    try:
        yield lambda: came
    finally:
        if taken:
            signal.signal(signal.SIGINT, former)


def ask(engine: Engine, job: Job, sampling: SamplingParams, progress: Callable[[Progress], None] | None = None) -> int:
    """Queue a job; the number that its updates carry."""
    return engine.add_request(
        job.prompt,
        decoder=job.decoder,
        sampling=sampling,
        seed=job.seed,
        progress=progress,
        features=job.features,
    )


def draw(
    engine: Engine, jobs: Sequence[Job], sampling: SamplingParams, progress: Callable[[Progress], None] | None = None
) -> Generator[tuple[Job, Update], None, None]:
    """Jobs with their finished images, in the order in which they are finished.

    Raises:
        KeyboardInterrupt: Ctrl-C, once all that was finished by then has been given.
        Exception: of the first image that fails.
    """
    waiting = deque(jobs)
    under_way: dict[int, Job] = {}
    with patient_interrupt() as interrupted:
        try:
            while waiting or under_way:
                while waiting and len(under_way) < UNDER_WAY:
                    job = waiting.popleft()
                    under_way[ask(engine, job, sampling, progress)] = job
                failed: Exception | None = None
                for update in engine.step():
                    if update.kind == "failed":
                        under_way.pop(update.request)
                        failed = failed or update.error
                    elif update.kind == "final":
                        yield under_way.pop(update.request), update
                if failed is not None:
                    raise failed
                if interrupted():
                    raise KeyboardInterrupt
        finally:
            for number in under_way:
                engine.abort(number)


@contextmanager
def alone(stats: Path | None) -> Iterator[None]:
    """Write a statistics file while no other process does; ValueError when one does: each would drop what the other
    has drawn."""
    if stats is None or is_stream(stats):
        yield
        return
    folder = stats.absolute().parent
    made = not folder.is_dir()
    folder.mkdir(exist_ok=True)
    try:
        with locked(stats, "writing of --stats"):
            yield
    finally:
        if made:
            with suppress(OSError):  # it holds something by now
                folder.rmdir()


@dataclass
class Record:
    """What became of the jobs of a call: files, lines and the statistics file.

    Args:
        jobs: all of them.
        lines: where a line an image goes.
        stats: the statistics file, written anew with every image, or None.
        warnings: stored in it.
    """

    jobs: Sequence[Job]
    lines: Lines
    stats: Path | None = None
    warnings: list[str] = field(default_factory=list)
    entries: dict[Job, dict[str, Any]] = field(default_factory=dict)

    @property
    def done(self) -> str:
        """How many images there are, for messages."""
        return f"{len(self.entries)} of {len(self.jobs)}"

    def keep(self, jobs: Sequence[Job]) -> None:
        """Take jobs over that an earlier call has drawn, with what its statistics say of them."""
        earlier: dict[Any, dict[str, Any]] = {}
        if self.stats is not None and self.stats.is_file():
            try:
                found = json.loads(self.stats.read_bytes())["images"]
                earlier = {entry["file"]: entry for entry in found}
            except (ValueError, KeyError, TypeError, OSError):
                pass  # it is replaced, as any file of that name
        for job in jobs:
            told = earlier.get(job.file, {})
            same = all(told.get(key) == value for key, value in job.entry.items())
            self.entries[job] = told if same else job.entry

    def add(self, job: Job, update: Update) -> None:
        """Write a finished image, its entry and its line, in this order."""
        if update.image is None or update.stats is None:
            raise RuntimeError("a final update holds an image and its statistics")
        if job.path is None:
            held = BytesIO()
            save_image(held, update.image, job.settings)
            try:
                sys.stdout.buffer.write(held.getvalue())
                sys.stdout.buffer.flush()
            except OSError:
                silence(sys.stdout)
                raise
        else:
            job.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic(job.path) as file:
                save_image(file, update.image, job.settings, job.path.suffix)
        self.entries[job] = {**job.entry, **update.stats.to_dict()}
        self.write_stats()
        count = f"{self.done}  " if len(self.jobs) > 1 else ""
        self.lines.print(
            f"{count}[bold]{escape(printable(job.file, keep=''))}[/]  seed {job.seed}\n  {escape(str(update.stats))}"
        )

    def write_stats(self) -> None:
        # What goes to a pipe cannot be replaced by the next state: it gets the last one.
        if self.stats is not None and (len(self.entries) == len(self.jobs) or not is_stream(self.stats)):
            entries = [self.entries[job] for job in self.jobs if job in self.entries]
            write_json(self.stats, {"version": __version__, "images": entries, "warnings": self.warnings})
