"""Feeds in layouts with row ends: what the model is fed for the positions that a decoder speaks of."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch

from .batch import Feed
from .devices import upload
from .models.language import LanguageModel


def with_row_ends(feed: Feed) -> Feed:
    """A feed by slots instead of positions, with the row end behind each code that ends a row.

    The logits behind such a code are those behind its row end. Of the positions in `feed.ends` the row end alone is
    fed.

    Raises:
        ValueError: a draft tree or a feature drafter, which know no row ends.
    """
    lane = feed.lane
    layout = lane.layout
    if layout.plain or feed.tokens is None:
        return feed
    if feed.tree is not None or feed.features is not None or feed.keep:
        raise ValueError("draft trees and feature drafters know no row ends: use another decoder")
    positions = feed.positions
    if len(positions) == 1 and positions[0] not in layout.row_last:
        slot = layout.slot(positions[0])
        return replace(feed, tokens=feed.values(), positions=range(slot, slot + 1), sources=None)
    # Which of the values stands in each slot; the row end is behind the last of them.
    slots: list[int] = []
    taken: list[int] = []
    behind: list[int] = []
    for index, position in enumerate(positions):
        slot = layout.slot(position)
        if position not in feed.ends:
            slots.append(slot)
            taken.append(index)
        if position in layout.row_last:
            slots.append(slot + 1)
            taken.append(len(positions))
        behind.append(len(slots) - 1)
    values = feed.values()
    row_end = cast(LanguageModel, lane.cache.model).config.vocab_size
    values = torch.cat([values, values.new_full((1,), row_end)])
    whole = slots[-1] - slots[0] + 1 == len(slots)
    return replace(
        feed,
        tokens=values[upload(taken, values.device)],
        positions=range(slots[0], slots[-1] + 1) if whole else slots,
        logits=[behind[i] for i in feed.wanted()],
        sources=None,
        ends=(),
    )
