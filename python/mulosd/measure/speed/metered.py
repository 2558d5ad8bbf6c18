"""A decoder that says what its forwards must move at least."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...engine.batch import Feed
from ...engine.decoding.base import Decoder, Plan
from ...engine.request import Request
from ..kernels.floors import Work, forward

if TYPE_CHECKING:
    from ...engine.family import Family


@dataclass(frozen=True)
class Metered(Decoder):
    """Another decoder, with the work of every feed that it asks for.

    Args:
        inner: the decoder, resolved.
        works: is filled with the work of each feed of the image.
    """

    inner: Decoder
    works: list[Work] = field(default_factory=list, compare=False)

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.inner.name

    def settings(self) -> dict[str, Any]:
        return self.inner.settings()

    def grids(self, family: Family) -> tuple[int, ...]:
        return self.inner.grids(family)

    def check_layout(self, family: Family) -> None:
        self.inner.check_layout(family)

    def bytes_per_row(self, family: Family, *, collapse: bool = False) -> int:
        return self.inner.bytes_per_row(family, collapse=collapse)

    def plan(self, request: Request) -> Plan:
        plan = self.inner.plan(request)
        try:
            feeds = next(plan)
            while True:
                self.works.extend(work_of(feed) for feed in feeds)
                results = yield feeds
                feeds = plan.send(results)
        except StopIteration as stop:
            return stop.value


def work_of(feed: Feed) -> Work:
    """What a forward of this feed alone cannot avoid."""
    model = feed.lane.cache.model
    c, lane = model.config, feed.lane
    length = lane.cond_len if feed.tokens is None else lane.cond_len + max(feed.positions) + 1
    vocab, dim = model.output.weight.shape
    return forward(
        c.n_layers, dim, c.n_heads, c.head_dim, c.ffn_dim, vocab,
        B=lane.branches, Q=feed.count, L=length, logits=lane.branches * len(feed.wanted()),
        e=model.output.weight.element_size(),
    )  # fmt: skip
