"""What a made-up device has seen: launches, waits, mixed devices, what a capture forbids, graphs, memory."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .graphs import FakeGraph

Place = tuple[str, str]


class Log:
    """What was seen, and what the device is asked to do wrong.

    Attributes:
        launches: kernels that the host launched one by one, by name.
        waits: of the host for the device, by (what, where). A copy from pageable memory is one.
        throttles: waits for an event that was recorded before other work, which hold back a host that is far ahead.
        mixes: operations on tensors of several devices.
        illegal: what a capture or a replay forbids, and pinned memory that was changed while it was copied.
        served: (op, backend) of the kernels' calls, as they would have been served.
        replays, captures: of graphs; `captures` holds the device of each.
        destroyed: graphs that are gone, but for those that went with the whole device.
        refuse: asked at each allocation, by bytes and place, whether memory is out.
    """

    active: Log | None = None

    def __init__(self) -> None:
        self.current = 0
        self.capturing: FakeGraph | None = None
        self.replaying = False
        self.destroyed = 0
        self.refuse: Callable[[int, str], bool] | None = None
        # Wrappers alive by address of their storage: memory without one is free on a real device.
        self.alive: Counter[int] = Counter()
        self.pinned: dict[int, Any] = {}
        self.flights: list[tuple[int, Tensor, Tensor]] = []
        self.flown = 0
        self.work = 0
        self.reset()

    def reset(self) -> None:
        """Forget what was counted so far."""
        self.launches: Counter[str] = Counter()
        self.waits: Counter[Place] = Counter()
        self.throttles = 0
        self.mixes: Counter[Place] = Counter()
        self.illegal: Counter[Place] = Counter()
        self.served: Counter[tuple[str, str]] = Counter()
        self.replays = 0
        self.captures: list[int] = []

    def launch(self, name: str) -> None:
        """A kernel of the device."""
        self.work += 1
        if self.capturing is None and not self.replaying:
            self.launches[name] += 1

    def wait(self, what: str) -> None:
        """The host waits for all that the device was given."""
        if self.capturing is not None or self.replaying:
            self.illegal[what, where()] += 1
        else:
            self.waits[what, where()] += 1
        self.land()

    def forbid(self, what: str) -> None:
        """Something that a device refuses or gets wrong."""
        self.illegal[what, where()] += 1

    def mix(self, what: str) -> None:
        """An operation on several devices."""
        self.mixes[what, where()] += 1

    def allocate(self, count: int) -> None:
        """Memory is asked for; raises the error of torch when it is refused."""
        if self.refuse is not None and self.refuse(count, where()):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate made-up memory.")

    def fly(self, source: Tensor) -> None:
        """A copy from pinned memory is under way: it may not change until the host has waited."""
        self.flown += 1
        self.flights.append((self.flown, source, source.clone()))

    def land(self, last: int | None = None) -> None:
        """Copies up to a number are done."""
        done = [f for f in self.flights if last is None or f[0] <= last]
        self.flights = [f for f in self.flights if last is not None and f[0] > last]
        for _, source, before in done:
            if not torch.equal(source, before):
                self.forbid("pinned memory was changed while it was copied")

    def sound(self) -> bool:
        """Whether nothing was seen that a device refuses or gets wrong."""
        self.land()
        return not self.mixes and not self.illegal

    def summary(self, images: int = 1, top: int = 12) -> str:
        """The counts an image, and where they come from."""
        lines = [
            f"eager launches {sum(self.launches.values()) / images:.0f}, graph replays {self.replays / images:.0f}, "
            f"captures {len(self.captures)}, host waits {sum(self.waits.values()) / images:.0f}, mixed devices "
            f"{sum(self.mixes.values())}, illegal {sum(self.illegal.values())}"
        ]
        for title, counter in (("wait", self.waits), ("MIX", self.mixes), ("ILLEGAL", self.illegal)):
            lines += [f"  {title:7} {n / images:7.1f}  {what}  {at}" for (what, at), n in counter.most_common(top)]
        lines += [f"  launch  {n / images:7.1f}  {name}" for name, n in self.launches.most_common(top)]
        return "\n".join(lines)


def where() -> str:
    """The innermost line of the package."""
    for frame in reversed(traceback.extract_stack()):
        for part in ("/engine/", "/kernels/"):
            if part in frame.filename and "/tests/" not in frame.filename:
                return f"{part[1:-1]}/{frame.filename.split(part)[-1]}:{frame.lineno} {frame.name}"
    return "?"
