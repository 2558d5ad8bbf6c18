"""What a generation did: forwards and tokens fed by role, seconds by stage, rejection and coverage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Progress:
    """One step of progress: `done` of `total` positions of a stage."""

    stage: str
    done: int
    total: int


@dataclass
class GenerationStats:
    """Figures of one image.

    `decoder`, `settings` and `spelling` tell what ran: its name, its settings, and the text that names it again
    (`decoding.parse`). `forwards` and `fed` count the passes that fed its tokens; `seconds` are wall-clock, requests
    that ran beside it included, `batch` the most that ran at a time, itself included. `rejection` is the share of
    positions whose pooled mass fell below tau, `coverage` the share that was resampled, `islands` their number, `depth`
    the forwards that resampling takes at least (None for decoders that do not verify). `accepted` is the mean number of
    tokens that the verification of a draft tree brought, the one drawn behind the accepted path included (None for
    decoders without trees). `waited` are the seconds before the scheduler took the request up, part of the total.
    """

    decoder: str
    settings: dict[str, Any]
    seed: int
    batch: int = 1
    forwards: dict[str, int] = field(default_factory=dict)
    fed: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    rejection: float | None = None
    coverage: float | None = None
    islands: int | None = None
    depth: int | None = None
    accepted: float | None = None
    spelling: str = ""
    waited: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __str__(self) -> str:
        roles = ", ".join(f"{n} {role}" for role, n in self.forwards.items())
        stages = ", ".join(f"{s} {t:.2f}" for s, t in self.seconds.items() if s != "total")
        text = f"{self.decoder}: {self.seconds.get('total', 0.0):.2f} s ({stages}); forwards: {roles}"
        if self.rejection is not None and self.coverage is not None:
            text += f"; rejected {self.rejection:.1%}, resampled {self.coverage:.1%} in {self.islands} islands"
        if self.accepted is not None:
            text += f"; {self.accepted:.2f} tokens a verification"
        return text


class Recorder:
    """Counts and times one request, into `stats`.

    Args:
        progress: told of every `report`.
        stats: what is filled; None is one that names no decoder.
        settle: waits for the device at the end of a stage, where the host runs ahead of it.
    """

    def __init__(
        self,
        progress: Callable[[Progress], None] | None = None,
        stats: GenerationStats | None = None,
        settle: Callable[[], None] | None = None,
    ) -> None:
        self.stats = GenerationStats("", {}, 0) if stats is None else stats
        self._progress, self._settle = progress, settle
        self._begun = time.perf_counter()

    @property
    def forwards(self) -> dict[str, int]:
        """Forward passes by role."""
        return self.stats.forwards

    def forward(self, role: str, tokens: int) -> None:
        """Count one forward pass that fed `tokens` tokens of each image."""
        for counts, n in ((self.stats.forwards, 1), (self.stats.fed, tokens)):
            counts[role] = counts.get(role, 0) + n

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; repeated stages add up."""
        begun, seconds = time.perf_counter(), self.stats.seconds
        try:
            yield
            if self._settle is not None:
                self._settle()
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begun

    def admit(self) -> None:
        """Note how long the request waited for the scheduler."""
        self.stats.waited = time.perf_counter() - self._begun

    def stop(self) -> None:
        """Set the total of seconds: all since the recorder was made."""
        self.stats.seconds["total"] = time.perf_counter() - self._begun

    def report(self, stage: str, done: int, total: int) -> None:
        """Tell the caller's progress callback."""
        if self._progress is not None:
            self._progress(Progress(stage, done, total))
