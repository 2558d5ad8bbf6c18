"""What a warm-up draws so that every kind of step is seen: which ones a request takes may depend on what it draws."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..request import Request
from ..sampling import Logits
from .base import Decoder
from .draft_tree import DraftTree
from .eagle import Eagle
from .mulo import MuloSD

# Of the candidates that are verified together every so manieth falls: none, all, scattered ones (no grid's side is a
# multiple of 13, so that they stand in no column), the first alone.
NONE, ALL, SCATTERED, FIRST = 0, 1, 13, 1 << 30


@dataclass(frozen=True)
class MuloRehearsal(MuloSD):
    """MuLo-SD that rejects by number, whatever the target says.

    Args:
        every: candidates 0, every, 2 * every, … of a verification fall; 0 is none.
    """

    every: int = NONE

    def accept(self, request: Request, logits: Logits, tokens: Tensor, table: Tensor, positions: range) -> Tensor:
        super().accept(request, logits, tokens, table, positions)  # its kernels are to be warm
        number = torch.arange(len(positions), device=tokens.device)
        return number % self.every > 0 if self.every else number >= 0


@dataclass(frozen=True)
class EagleRehearsal(Eagle):
    """EAGLE whose trees stand as far as they reach, or fall, whatever the target says.

    Args:
        stands: whether the longest path of a tree stands.
    """

    stands: bool = True

    def taken(self, tree: DraftTree, path: list[int]) -> list[int]:
        node = max(range(len(tree)), key=lambda n: tree.layers[n]) if self.stands else 0
        longest: list[int] = []
        while node >= 0:
            longest.insert(0, node)
            node = tree.parents[node]
        return longest


def rehearsals(decoder: Decoder) -> tuple[Decoder, ...]:
    """Decoders whose images take, together, every kind of step that a decoder, resolved, may take for any image."""
    if isinstance(decoder, MuloSD):
        own = {f.name: getattr(decoder, f.name) for f in fields(MuloSD)}
        return tuple(MuloRehearsal(**own, every=every) for every in (NONE, ALL, SCATTERED, FIRST))
    if isinstance(decoder, Eagle):
        own = {f.name: getattr(decoder, f.name) for f in fields(Eagle)}
        return tuple(EagleRehearsal(**own, stands=stands) for stands in (False, True))
    return (decoder,)
