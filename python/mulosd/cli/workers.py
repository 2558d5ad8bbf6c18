"""Images that several processes draw, one a device; the process that started them writes them."""

from __future__ import annotations

import pickle
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING, Any

from .console import warn
from .drawing import UNDER_WAY, ask, patient_interrupt
from .jobs import Job

if TYPE_CHECKING:
    from .. import Engine
    from ..engine.request import Update
    from ..engine.sampling import SamplingParams
    from ..engine.stats import Progress

# Seconds between looks at Ctrl-C, and between what a worker tells of its progress.
PATIENCE, TELLING = 0.2, 0.1
# Seconds that a worker may take to end once it is told to.
ENDING = 10.0


@dataclass(eq=False)
class Worker:
    """A process that draws on one device.

    Attributes:
        device: its name.
        process, pipe: the process, and the way to it.
        ready: whether its models are loaded.
        jobs: numbers of the jobs that it was given and has not finished.
        error: why it could not go on, if it said so.
    """

    device: str
    process: SpawnProcess
    pipe: Connection
    ready: bool = False
    jobs: list[int] = field(default_factory=list)
    error: Exception | None = None

    def send(self, message: int | None) -> None:
        """Give it a job, or None: it is to end. A worker that is gone is noticed where its messages are read."""
        with suppress(OSError):
            self.pipe.send(message)

    def end(self) -> str:
        """How a process that closed its pipe ended."""
        self.process.join(ENDING)
        code = self.process.exitcode
        if self.error is not None:
            return f"{type(self.error).__name__}: {self.error}"
        if code is not None and code < 0:
            return f"killed by signal {-code}" + (", as where memory is out" if code == -signal.SIGKILL else "")
        return f"exit code {code}"


def draw_on(
    devices: Sequence[str],
    load: dict[str, Any],
    jobs: Sequence[Job],
    sampling: SamplingParams,
    progress: Callable[[Progress], None] | None = None,
) -> Generator[tuple[Job, Update], None, None]:
    """Jobs with their finished images, as `drawing.draw` gives them, drawn by one process a device.

    A worker gets new jobs as it finishes others. The jobs of one that dies go to the others, once.

    Args:
        devices: one worker each.
        load: arguments of `Engine.from_pretrained`, without the device.
        jobs, sampling, progress: as for `drawing.draw`.

    Raises:
        KeyboardInterrupt: Ctrl-C, once all that was finished by then has been given.
        ChildProcessError: no worker is left, or two died of the same jobs.
        Exception: of the first image that fails, or of the only worker that could have drawn.
    """
    pool = Pool(start(devices, load, jobs, sampling), len(jobs), progress)
    with patient_interrupt() as interrupted:
        try:
            while pool.unfinished:
                pool.deal()
                for index, update in pool.receive():
                    yield jobs[index], update
                if pool.failed is not None or interrupted():
                    for index, update in pool.last():
                        yield jobs[index], update
                    raise pool.failed or KeyboardInterrupt
                if pool.unfinished and not pool.workers:
                    raise pool.gone()
        finally:
            pool.stop()


class Pool:
    """Workers, and the numbers of the jobs that they have and that they have not.

    Args:
        workers: started.
        count: number of jobs.
        progress: told of what workers tell.
    """

    def __init__(self, workers: list[Worker], count: int, progress: Callable[[Progress], None] | None) -> None:
        self.workers, self.progress = workers, progress
        self.waiting = deque(range(count))
        self.failed: Exception | None = None
        self.closing = False
        self._lost: Counter[int] = Counter()
        self._ended: list[Worker] = []

    @property
    def unfinished(self) -> int:
        return len(self.waiting) + sum(len(worker.jobs) for worker in self.workers)

    def deal(self) -> None:
        """Give jobs to the workers that are ready: no more than an equal share of what is left, so that the last ones
        are spread as well."""
        share = min(UNDER_WAY, -(-self.unfinished // max(1, len(self.workers))))
        ready = [worker for worker in self.workers if worker.ready]
        while self.waiting and ready:
            worker = min(ready, key=lambda worker: len(worker.jobs))
            if len(worker.jobs) >= share:
                return
            worker.jobs.append(self.waiting.popleft())
            worker.send(worker.jobs[-1])

    def receive(self) -> list[tuple[int, Update]]:
        """Finished jobs that workers have told of by now, or within a moment."""
        finished = []
        found = connection.wait([worker.pipe for worker in self.workers], PATIENCE)
        for worker in [worker for worker in self.workers if worker.pipe in found]:
            try:
                kind, what = worker.pipe.recv()
            except (EOFError, OSError):
                self._bury(worker)
                continue
            if kind == "ready":
                worker.ready = True
            elif kind == "progress":
                if self.progress is not None:
                    self.progress(what)
            elif kind == "broken":
                worker.error = what
            else:
                index, told = what
                worker.jobs.remove(index)
                if kind == "final":
                    finished.append((index, told))
                else:
                    self.failed = self.failed or told
        return finished

    def last(self) -> list[tuple[int, Update]]:
        """Have the workers end their steps, and what they finish by that."""
        self.closing = True
        self.waiting.clear()
        for worker in self.workers:
            worker.send(None)
            if not worker.ready:
                worker.process.kill()
        finished = []
        while self.workers:
            finished += self.receive()
        return finished

    def gone(self) -> Exception:
        """What to raise when no worker is left."""
        last = self._ended[-1]
        return last.error or ChildProcessError(
            f"the worker of {last.device} ended ({last.end()}), and no other is left"
        )

    def stop(self) -> None:
        """End all workers: in peace those that have nothing to do."""
        for worker in self.workers:
            worker.send(None)
            if worker.jobs or not worker.ready:
                worker.process.kill()
        for worker in self.workers:
            worker.process.join(ENDING)
            if worker.process.is_alive():
                worker.process.kill()
            worker.pipe.close()
        self.workers.clear()

    def _bury(self, worker: Worker) -> None:
        """Take a worker out that has ended, and give its jobs back."""
        self.workers.remove(worker)
        self._ended.append(worker)
        how, jobs = worker.end(), worker.jobs
        worker.pipe.close()
        if self.closing:
            return
        self._lost.update(jobs)
        twice = [index for index in jobs if self._lost[index] > 1]
        if twice:
            self.failed = ChildProcessError(
                f"the worker of {worker.device} ended ({how}), the second one to end with the same {len(twice)} images "
                f"under way: they are not tried again"
            )
            return
        self.waiting.extendleft(reversed(jobs))
        if self.workers:
            rest = f"the others draw its {len(jobs)} images" if jobs else "the others go on"
            warn(f"the worker of {worker.device} ended ({how}); {rest}")


def start(devices: Sequence[str], load: dict[str, Any], jobs: Sequence[Job], sampling: SamplingParams) -> list[Worker]:
    """Start a process for each device. Those on the CPU share its threads."""
    import torch

    context, threads = get_context("spawn"), max(1, torch.get_num_threads() // max(1, list(devices).count("cpu")))
    # As bytes: tensors that multiprocessing pickles itself lie in shared memory, which a worker that dies may leave.
    packed = pickle.dumps((list(jobs), sampling))
    workers = []
    for device in devices:
        mine, theirs = context.Pipe()
        process = context.Process(
            target=work, args=(theirs, device, threads, load, packed), name=f"mulosd {device}", daemon=True
        )
        process.start()
        theirs.close()
        workers.append(Worker(device, process, mine))
    return workers


def work(pipe: Connection, device: str, threads: int, load: dict[str, Any], packed: bytes) -> None:
    """What a worker does: draw the jobs that it is given until it is told to end, or nobody is there to tell."""
    # Ctrl-C reaches all processes of a terminal. What becomes of it is for the one that started this to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        try:
            import torch

            from .. import Engine

            if device == "cpu":
                torch.set_num_threads(threads)
            jobs, sampling = pickle.loads(packed)
            engine = Engine.from_pretrained(**load, device=device)
            pipe.send(("ready", None))
            draw_given(engine, jobs, sampling, pipe)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            pass
        except Exception as error:
            pipe.send(("broken", portable(error)))
    except OSError:
        pass  # nobody listens any more
    finally:
        pipe.close()


def draw_given(engine: Engine, jobs: Sequence[Job], sampling: SamplingParams, pipe: Connection) -> None:
    """Draw the jobs whose numbers come by the pipe, until None comes."""
    from dataclasses import replace

    under_way: dict[int, int] = {}
    told = 0.0

    def tell(progress: Progress) -> None:
        nonlocal told
        if (now := time.monotonic()) - told >= TELLING or progress.done == progress.total:
            told = now
            pipe.send(("progress", progress))

    while True:
        while not under_way or pipe.poll():
            index = pipe.recv()
            if index is None:
                return
            try:
                under_way[ask(engine, jobs[index], sampling, tell)] = index
            except Exception as error:
                pipe.send(("failed", (index, portable(error))))
        for update in engine.step():
            if update.kind == "failed":
                why = update.error or RuntimeError("a request failed and did not say why")
                pipe.send(("failed", (under_way.pop(update.request), portable(why))))
            elif update.kind == "final":
                # The rest of it is tensors, which no file needs.
                bare = replace(update, tokens=None, resampled=None, rejected=None)
                pipe.send(("final", (under_way.pop(update.request), bare)))


def portable(error: Exception) -> Exception:
    """An exception that another process can read."""
    try:
        copied = pickle.loads(pickle.dumps(error))
    except Exception:
        copied = None
    if isinstance(copied, Exception) and str(copied) == str(error):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")
