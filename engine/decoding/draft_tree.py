"""A dynamic draft tree (EAGLE-2, Li et al., arXiv 2406.16858): grown by confidence, cut to its best nodes, and judged.

The confidence of a node is the product of the drafter's probabilities on the path to it. Each layer expands its `top_k`
most confident nodes by `top_k` children; of all nodes the `total` best are verified.

Children that are drawn at random must not be kept or dropped for what they turned out to be, or the output would no
longer have the target's distribution. A child is therefore ranked by a bound that is known before it is drawn: the
confidence of its parent times the largest probability that its older siblings left. It never exceeds the rank of its
parent or of an older sibling, so what is kept is a tree, and of each node's children the first ones.

Which nodes stand, `accept` says: speculative sampling over trees, exact, or relaxed as LANTERN does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ...kernels import masks, philox
from ...kernels.sampling import guide
from ..devices import upload
from ..sampling import Logits, Noise, SamplingParams, processed

# Purposes of the random numbers of drafting and of acceptance, see `philox.Purpose`.
DRAFT_PURPOSE, ACCEPT_PURPOSE = 1 << 24, (1 << 24) + 1


def check_told(flags: Sequence[float], model: str) -> None:
    """ValueError when one of the flags, which were read along with something else, says that logits were not finite."""
    if any(flags):
        raise ValueError(f"{model} gave NaN or infinite logits: its weights are damaged, or too large for its type")


class Stream:
    """Uniform random numbers of one request, row after row, drawn in blocks."""

    def __init__(self, seed: int, width: int, purpose: int, device: torch.device, block: int = 64) -> None:
        self.seed, self.width, self.purpose, self.device = seed, width, purpose, device
        self.block = max(1, min(block, (1 << 20) // width))
        self.rows = torch.zeros(0, width, device=device)
        self.drawn = 0

    def take(self, n: int) -> Tensor:
        """The next n rows, float32 [n, width]."""
        while len(self.rows) < n:
            where = torch.arange(self.drawn, self.drawn + self.block, device=self.device)
            self.drawn += self.block
            fresh = philox.uniform(torch.full_like(where, self.seed), where, self.width, self.purpose)
            self.rows = torch.cat([self.rows, fresh])
        taken, self.rows = self.rows[:n], self.rows[n:]
        return taken


class Children(NamedTuple):
    """Children of m nodes, each [m, K]: tokens, the drafter's confidence in them, what ranks them; and the drafter's
    distribution q [m, V] behind the nodes, None where it is not needed."""

    tokens: Tensor
    confidence: Tensor
    rank: Tensor
    q: Tensor | None


class Drawn:
    """Children drawn from the drafter's processed distribution, without replacement."""

    def __init__(self, seed: int, vocab: int, sampling: SamplingParams, device: torch.device) -> None:
        self.sampling = sampling
        self.noise = Stream(seed, vocab, DRAFT_PURPOSE, device)

    def children(self, logits: Logits, position: int, k: int) -> Children:
        """The k children at a raster position of nodes with these logits [m, V]."""
        scores = processed(logits, self.sampling, [position] * len(logits))
        q = scores.softmax(dim=-1)
        # The k largest of log q + Gumbel noise are k draws from q without replacement, in order.
        gumbel = self.noise.take(len(q)).log().neg().log().neg()
        tokens = (scores + gumbel).topk(k, dim=-1).indices
        best = q.topk(k, dim=-1)
        gone = (best.indices[:, :, None] == tokens[:, None, :]).cumsum(dim=2)
        gone = torch.cat([torch.zeros_like(gone[:, :, :1]), gone[:, :, :-1]], dim=2) > 0  # by older siblings only
        bound = best.values[:, :, None].masked_fill(gone, 0.0).amax(dim=1)
        return Children(tokens, q.gather(1, tokens), bound, q)


def greedy_scores(logits: Logits, sampling: SamplingParams, positions: list[int]) -> Tensor:
    """Guided logits float32 [n, V] at raster positions, for temperature 0: processed ones tell the likeliest token
    alone."""
    logits, left = sampling.prepare(logits, positions)
    return guide(logits.cond, logits.uncond, left.cfg_scale)


class Foreseen:
    """Children that the target is likely to draw with the noise of their position, which is known beforehand."""

    def __init__(self, noise: Noise, sampling: SamplingParams) -> None:
        self.noise, self.sampling = noise, sampling

    def children(self, logits: Logits, position: int, k: int) -> Children:
        """The k children at a raster position of nodes with these logits [m, V]."""
        positions = [position] * len(logits)
        if self.sampling.temperature == 0:
            scores = greedy_scores(logits, self.sampling, positions)
        else:
            scores = processed(logits, self.sampling, positions) + self.noise.rows([position])
        best = scores.softmax(dim=-1).topk(k, dim=-1)
        return Children(best.indices, best.values, best.values, None)


@dataclass(frozen=True)
class DraftTree:
    """The nodes that are verified; node 0 is the last known token, parents come before their children.

    Attributes:
        tokens: int64 [n].
        parents, layers: of each node; -1 and 0 for node 0.
        order: which child of its parent a node is, in the order of drawing.
        expanded: which row of `q` is the distribution behind a node, -1 where it was not expanded.
        q: float32 [m, V], or None.
    """

    tokens: Tensor
    parents: list[int]
    layers: list[int]
    order: list[int]
    expanded: list[int]
    q: Tensor | None

    def __len__(self) -> int:
        return len(self.parents)

    def block(self) -> Tensor:
        """What the nodes see of one another, packed."""
        block, device = masks.pack(masks.tree(torch.tensor(self.parents))), self.tokens.device
        return block if device.type != "cuda" else block.pin_memory().to(device, non_blocking=True)


class Growth:
    """A tree while it grows, layer by layer.

    Args:
        root: int64 [1], the last known token.
        feature: [branches, 1, dim], the drafter's feature of the root.
        top_k: children of a node.
        beam: nodes of a layer that are expanded.
    """

    def __init__(self, root: Tensor, feature: Tensor, top_k: int, beam: int) -> None:
        self.root, self.top_k, self.beam = root, top_k, beam
        self.layers: list[Children] = []
        # The expanded nodes behind the root, in the order in which the drafter is fed them.
        self.fed = root[:0]
        self.features = feature[:, :0]
        self.depths: list[int] = []
        self.sees = torch.zeros(0, 0, dtype=torch.bool, device=root.device)
        # The nodes expanded last: indices into what was fed (-1 is the root), features, confidence.
        self._tip = torch.full((1,), -1, dtype=torch.int64, device=root.device)
        self._tip_feature = feature
        self._confidence = torch.ones(1, device=root.device)
        self._picked: list[Tensor] = []

    def add(self, children: Children) -> None:
        """A layer of children of the nodes that were expanded last."""
        above = self._confidence[:, None]
        self.layers.append(children._replace(confidence=children.confidence * above, rank=children.rank * above))

    def expand(self) -> int:
        """Append the most confident nodes of the last layer to what is fed; returns how many they are."""
        confidence = self.layers[-1].confidence.flatten()
        picked = confidence.topk(min(self.beam, len(confidence))).indices
        self._picked.append(picked)
        parent = picked // self.top_k
        count, width = len(self.fed), len(picked)
        own = torch.eye(width, dtype=torch.bool, device=picked.device)
        seen = self.sees[self._tip[parent]] if count else self.sees.new_zeros(width, 0)
        self.sees = torch.cat([F.pad(self.sees, (0, width)), torch.cat([seen, own], dim=1)])
        self.fed = torch.cat([self.fed, self.layers[-1].tokens.flatten()[picked]])
        self.features = torch.cat([self.features, self._tip_feature[:, parent]], dim=1)
        self.depths += [len(self.layers)] * width
        self._tip = torch.arange(count, count + width, device=picked.device)
        self._confidence = confidence[picked]
        return width

    def expanded(self, features: Tensor) -> None:
        """The drafter's features [branches, n, dim] of the nodes that are expanded next."""
        self._tip_feature = features

    def cut(self, total: int) -> DraftTree:
        """The best `total` nodes, best first, behind the root. One read of the device.

        Raises:
            ValueError: the drafter gave logits that are not finite; of ranks that are sorted, NaN goes first.
        """
        k, device = self.top_k, self.root.device
        ranks = torch.cat([c.rank.flatten() for c in self.layers])
        tokens = torch.cat([c.tokens.flatten() for c in self.layers])
        # Stable: of equal ranks, parents and older siblings go first.
        rank, best = ranks.sort(descending=True, stable=True)
        best = best[:total]
        picked = torch.cat(self._picked or [self.root[:0]])
        count = len(best)
        host = torch.cat([rank[:1].isnan(), best, rank[:total] > 0, picked]).tolist()
        check_told(host[:1], "the feature drafter")
        host = host[1:]
        chosen = [c for c, drawn in zip(host[:count], host[count : 2 * count], strict=True) if drawn]
        picks = host[2 * count :]
        # Rows of children: row 0 is the root's, then one for each expanded node, layer by layer.
        owner, at = [0], 0  # the candidate that owns each row
        layer_of: list[int] = []
        for depth, layer in enumerate(self.layers, start=1):
            rows = len(layer.tokens)
            layer_of += [depth] * (rows * k)
            if depth < len(self.layers):
                after = min(self.beam, rows * k)
                owner += [len(layer_of) - rows * k + p for p in picks[at : at + after]]
                at += after
        row_of = {candidate: row for row, candidate in enumerate(owner) if row}
        node_of = {candidate: node for node, candidate in enumerate(chosen, start=1)}
        parents = [0 if c < k else node_of[owner[c // k]] for c in chosen]
        q = None if self.layers[0].q is None else torch.cat([c.q for c in self.layers if c.q is not None])
        index = upload(chosen, device)
        return DraftTree(
            torch.cat([self.root, tokens[index]]),
            [-1, *parents],
            [0, *(layer_of[c] for c in chosen)],
            [0, *(c % k for c in chosen)],
            [0, *(row_of.get(c, -1) for c in chosen)],
            q,
        )


@dataclass(frozen=True)
class Lantern:
    """LANTERN's relaxed acceptance (Jang et al., arXiv 2410.03355): near codes lend a drafted token their probability.

    Lossy. The distribution by which a token is judged differs from the target's by at most `delta` in total variation;
    what is drawn in the end may differ by more, for each child of a node is judged with mass of its own (0.18 to 0.24
    behind one node at `delta` 0.1).

    At temperature 0 a drafted token stands when, with what it is lent of the guided softmax, it is the likeliest one;
    of all paths that stand the longest is taken, and behind it the target's likeliest token. This is the rule of the
    public code.

    Args:
        k: how many nearest codes, the token itself included (by cosine, as `MuloSD` pools): the public code's
            `lantern_k` + 1.
        delta: most mass that a token may borrow, in [0, 1); neighbours lend in order of nearness, each all or nothing.
            The public code's `lantern_delta` up to 1; above that it is relative to the token's own probability there.
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
        choice = choice.masked_fill(taken, j)
        left = (wanted - q).clamp(min=0)
        mass = left.sum(dim=1, keepdim=True)
        # Nothing is left only where p and q agree but for rounding.
        p = torch.where((judged & ~taken)[:, None] & (mass > 0), left / mass, p)
        q = q.scatter(1, token, 0.0)
        q = q / q.sum(dim=1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)
    return Verdict(choice, p)


def accept_greedily(p: Tensor, tree: DraftTree, relaxed: Lantern, neighbours: Tensor) -> list[int]:
    """The longest path of nodes that stand at temperature 0, from the root, see `Lantern`; the best-ranked of several.

    Args:
        p: float32 [n, V], the target's guided softmax behind each node.
        tree: of n nodes.
        relaxed: what near codes lend.
        neighbours: int [V, k] nearest codes, themselves first.
    """
    if len(tree) == 1:
        return [0]
    token = tree.tokens[1:, None]
    before = p[torch.tensor(tree.parents[1:], device=p.device)]
    likeliest = relaxed.lend(before, token, neighbours).argmax(dim=-1) == token[:, 0]
    host = torch.cat([likeliest, p[:, 0].isnan()]).tolist()
    check_told(host[len(token) :], "the model")
    stands = host[: len(token)]
    # Parents come before their children, and better nodes before worse ones.
    paths = [[0]]
    for node, parent in enumerate(tree.parents[1:], start=1):
        paths.append([*paths[parent], node] if stands[node - 1] and paths[parent] else [])
    return max(paths, key=len)
