"""Which nodes of a draft tree stand: speculative sampling over trees, exact or relaxed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Lantern:
    """LANTERN's relaxed acceptance (Jang et al., arXiv 2410.03355): near codes lend a drafted token their probability.

    Lossy: the distribution by which a token is judged differs from the target's by at most `delta` in total variation.

    Args:
        k: how many nearest codes, the token itself included (by cosine, as `MuloSD` pools).
        delta: most mass that a token may borrow, in [0, 1); neighbours lend in order of nearness, each all or nothing.
    """

    k: int = 64
    delta: float = 0.2

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"lantern_k must be at least 1 code (the token itself), got {self.k}")
        if not 0 <= self.delta < 1:
            raise ValueError(f"delta must be in [0, 1), got {self.delta}")

    def lend(self, p: Tensor, token: Tensor, neighbours: Tensor) -> Tensor:
        """The distribution p [n, V] with mass moved to token [n, 1] from its neighbours, table [V, k], itself first."""
        near = neighbours[token[:, 0], 1:].long()
        mass = p.gather(1, near)
        lent = mass.cumsum(dim=1) <= self.delta
        moved = p.scatter(1, near, mass.masked_fill(lent, 0.0))
        return moved.scatter_add(1, token, (mass * lent).sum(dim=1, keepdim=True))


class Verdict(NamedTuple):
    """For every node which of its children is accepted, int64 [n], -1 for none; and what a token behind none of them is
    drawn from, float32 [n, V]."""

    choice: Tensor
    residual: Tensor


def accept(
    p: Tensor,
    q: Tensor,
    children: Tensor,
    present: Tensor,
    uniform: Tensor,
    relaxed: Lantern | None = None,
    neighbours: Tensor | None = None,
) -> Verdict:
    """Recursive rejection sampling without replacement, for all nodes of a tree at once.

    Children c_1, c_2, … of a node were drawn one after the other from q, each without those before it. c_j is accepted
    with probability min(1, p(c_j) / q(c_j)); when it is not, p becomes the normalised max(p - q, 0), q loses c_j, and
    c_{j+1} has its turn. A token that is accepted, or else drawn from the p that is left, has the distribution p
    (Leviathan et al., arXiv 2211.17192, applied again and again; without replacement: Jeon et al., arXiv 2402.14160).
    That needs the number of children that a node kept to be settled before the last of them was drawn.

    Args:
        p, q: float32 [n, V], the target's and the drafter's processed distributions behind each node.
        children: int64 [n, K] tokens in the order in which they were drawn.
        present: bool [n, K], which of them the tree kept: the first ones of each node.
        uniform: float32 [n, K] in (0, 1).
        relaxed: how p is moved towards each child before it is judged; None is exact.
        neighbours: int [V, k] nearest codes, with `relaxed`.
    """
    choice = torch.full((len(p),), -1, dtype=torch.int64, device=p.device)
    for j in range(children.shape[1]):
        token = children[:, j : j + 1]
        judged = present[:, j] & (choice < 0)
        wanted = p if relaxed is None or neighbours is None else relaxed.lend(p, token, neighbours)
        drafted = q.gather(1, token)[:, 0]
        taken = judged & (uniform[:, j] * drafted < wanted.gather(1, token)[:, 0]) & (drafted > 0)
        choice[taken] = j
        left = (wanted - q).clamp(min=0)
        mass = left.sum(dim=1, keepdim=True)
        # Nothing is left only where p and q agree but for rounding.
        p = torch.where((judged & ~taken)[:, None] & (mass > 0), left / mass, p)
        q = q.scatter(1, token, 0.0)
        q = q / q.sum(dim=1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)
    return Verdict(choice, p)
