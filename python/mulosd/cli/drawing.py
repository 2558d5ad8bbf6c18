"""Images that are written as they are finished, so that whatever happens later leaves them."""

from __future__ import annotations

import json
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rich.markup import escape

from .._version import __version__
from ..engine.atomic import atomic, is_stream, write_json
from ..engine.lock import locked
from ..screen import printable
from .console import Lines, silence
from .image_files import save_image
from .jobs import Job

if TYPE_CHECKING:
    from PIL.Image import Image

    from .. import Engine
    from ..engine.request import Update
    from ..engine.sampling import SamplingParams
    from ..engine.stats import Progress

# Images under way at a time; each holds rows of the KV caches.
UNDER_WAY = 8


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
    with closing(outcomes(engine, jobs, sampling, progress)) as found:
        for job, update in found:
            if update.error is not None:
                raise update.error
            yield job, update


def outcomes(
    engine: Engine,
    jobs: Sequence[Job],
    sampling: SamplingParams,
    progress: Callable[[Progress], None] | None = None,
    most: int = UNDER_WAY,
) -> Generator[tuple[Job, Update], None, None]:
    """Jobs with their last updates, final or failed, in the order in which they end; at most so many under way.

    Raises:
        KeyboardInterrupt: Ctrl-C, once all that was finished by then has been given.
    """
    waiting = deque(jobs)
    under_way: dict[int, Job] = {}
    with patient_interrupt() as interrupted:
        try:
            while waiting or under_way:
                while waiting and len(under_way) < most:
                    job = waiting.popleft()
                    under_way[ask(engine, job, sampling, progress)] = job
                ended = [update for update in engine.step() if update.kind in ("final", "failed")]
                # A failure may end the call: first what it must not lose.
                for update in sorted(ended, key=lambda update: update.kind == "failed"):
                    yield under_way.pop(update.request), update
                if interrupted():
                    raise KeyboardInterrupt
        finally:
            for number in under_way:
                engine.abort(number)


def encoded(job: Job, image: Image) -> bytes:
    """The bytes of a job's file."""
    held = BytesIO()
    save_image(held, image, job.settings, ".png" if job.path is None else job.path.suffix)
    return held.getvalue()


@contextmanager
def image_file(path: Path) -> Iterator[BinaryIO]:
    """The file of an image, which appears whole or not at all; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        yield file


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
            data = encoded(job, update.image)
            try:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            except OSError:
                silence(sys.stdout)
                raise
        else:
            with image_file(job.path) as file:
                file.write(encoded(job, update.image))
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
