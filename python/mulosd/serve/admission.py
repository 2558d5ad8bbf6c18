"""Places of the queue: taken in one go before any work, given back whatever happens, refused when there are none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import ApiError

# Weight of the newest request in the running mean of seconds.
NEWEST = 0.2
LONGEST_WAIT = 60.0


class Admission:
    """Counts images under way in the event loop, so that checking and taking are one step.

    Args:
        running: images that run at a time.
        waiting: images that may wait beside them.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self.running, self.places = running, running + waiting
        self.taken = 0
        self.seconds = 1.0  # of one image, a running mean

    @contextmanager
    def places_for(self, n: int) -> Iterator[None]:
        """Places for n images while the block runs.

        Raises:
            ApiError: 400 when there can never be so many, 429 when there are not now.
        """
        if n > self.places:
            raise ApiError(
                400,
                f"n={n} images need as many places at once, and this server has {self.places}; ask for fewer",
                param="n",
                code="invalid_value",
            )
        if self.taken + n > self.places:
            raise ApiError(
                429,
                f"{self.taken} images are under way, {self.places} may be; try again in {self.retry_after:.0f} s",
                code="queue_full",
                retry_after=self.retry_after,
            )
        self.taken += n
        try:
            yield
        finally:
            self.taken -= n

    @property
    def retry_after(self) -> float:
        """Seconds until about half of what is under way is done, between 1 and a minute."""
        return min(LONGEST_WAIT, max(1.0, round(self.taken / self.running * self.seconds / 2)))

    def took(self, seconds: float) -> None:
        """Note how long an image took from its start in the engine."""
        self.seconds += NEWEST * (seconds - self.seconds)
