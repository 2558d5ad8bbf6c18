"""Speculative decoding with a feature drafter and dynamic draft trees (EAGLE, arXiv 2401.15077; EAGLE-2, 2406.16858).

A layer that was trained on the target's own features drafts a tree of continuations; one forward of the target
verifies all its paths. Exact unless relaxed: the tokens follow the target's processed distribution (guidance,
temperature, top-k, top-p), whatever the drafter proposes.

* Plain: children are drawn from the drafter's processed distribution and judged by recursive rejection sampling.
* Coupled: the target draws with the noise of `Serial`, and a child stands when it is the token drawn. The drafter,
  which knows that noise too, proposes what it would have drawn. What comes out is token for token what serial decoding
  gives.
* Relaxed: LANTERN (arXiv 2410.03355), lossy.

At temperature 0 nothing is drawn, and plain is coupled; relaxed has a rule of its own, see `draft_tree.Lantern`.

A tree lies in the slots of positions that are not decoded yet, so it has no more nodes than there are of these; the
keys and values of the accepted path are then copied to its own slots.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ...kernels import masks
from ...kernels.upsample_pool import neighbours
from ..arguments import shown
from ..batch import Feed, Result, Tree
from ..cache import KVCache
from ..devices import upload
from ..family import Family
from ..request import Request, Steps, logits_of, prefix
from ..sampling import Purpose, processed
from .base import OneGrid, Outcome, Plan
from .draft_tree import (
    ACCEPT_PURPOSE,
    DraftTree,
    Drawn,
    Foreseen,
    Growth,
    Lantern,
    Stream,
    accept,
    accept_greedily,
    check_told,
    greedy_scores,
)

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Eagle(OneGrid):
    """EAGLE-2, lossless unless `relaxed`; the family needs a feature drafter (`mulosd train eagle`).

    Args:
        depth: layers of the tree, each a forward of the drafter: the public code's `depth` + 1.
        top_k: children of a node, and nodes of a layer that are expanded.
        total: nodes that are verified in one forward of the target, beside the last known token.
        coupled: draw with the noise of `Serial` and equal it token for token.
        relaxed: accept near codes too, as LANTERN does; lossy.
        grid: side in tokens; None is the largest of the family.
    """

    name: ClassVar[str] = "eagle"
    depth: int = 4
    top_k: int = 4
    total: int = 12
    coupled: bool = False
    relaxed: Lantern | None = None
    grid: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_least(depth=1, top_k=1, total=1)
        if self.relaxed is not None and not isinstance(self.relaxed, Lantern):
            raise ValueError(f"relaxed must be a Lantern or None, got {shown(self.relaxed)}")
        if self.coupled and self.relaxed is not None:
            raise ValueError("coupled decoding is exact, LANTERN's acceptance is relaxed: leave one of them out")

    @classmethod
    def text_settings(cls) -> dict[str, str]:
        own = {f.name: str(f.type) for f in fields(cls) if f.name != "relaxed"}
        return {**own, "lantern_k": "int", "delta": "float"}

    @classmethod
    def from_settings(cls, values: Mapping[str, Any]) -> Self:
        own = dict(values)
        names = {"lantern_k": "k", "delta": "delta"}
        lantern = {names[key]: own.pop(key) for key in list(own) if key in names}
        return cls(**own, relaxed=Lantern(**lantern) if lantern else None)

    def settings(self) -> dict[str, Any]:
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "relaxed"}
        lantern = {} if self.relaxed is None else {"lantern_k": self.relaxed.k, "delta": self.relaxed.delta}
        return {**own, **lantern}

    def resolve(self, family: Family) -> Self:
        resolved = super().resolve(family)
        family.eagle_drafter(resolved.side(family))
        vocab = family.ar.config.vocab_size
        for name, value in (("top_k", self.top_k), ("lantern_k", self.relaxed.k if self.relaxed else 1)):
            if value > vocab:
                raise ValueError(f"{name} must be at most the codebook size {vocab}, got {value}")
        return resolved

    def caches(self, family: Family) -> tuple[tuple[int, bool], ...]:
        return (*super().caches(family), (self.side(family), True))

    def bytes_per_row(self, family: Family, *, collapse: bool = False) -> int:
        grid = self.side(family)
        own = KVCache.bytes_per_row(family.eagle_drafter(grid), grid)
        return own + super().bytes_per_row(family, collapse=collapse)

    def taken(self, tree: DraftTree, path: list[int]) -> list[int]:
        """The nodes of a tree that become tokens where those of a path stand; a warm-up overrides it."""
        return path

    def plan(self, request: Request) -> Plan:
        grid = self.side(request.family)
        with request.recorder.stage("eagle"):
            speculation = Speculation(self, request, grid)
            yield from speculation.run()
        rounds = max(1, request.recorder.forwards.get("verify", 0))
        return Outcome(speculation.tokens.view(grid, grid), accepted=(grid * grid - 1) / rounds)


class Speculation:
    """One image under way: `done` tokens stand, the last of them is yet to be fed."""

    def __init__(self, decoder: Eagle, request: Request, grid: int) -> None:
        self.decoder, self.request = decoder, request
        family, device = request.family, request.features.device
        self.lane, self.drafter = request.lane(grid), request.lane(grid, drafter=True)
        self.tokens = torch.zeros(self.lane.size, dtype=torch.int64, device=device)
        self.done = self.known = 0
        # The target's features before the tokens that the drafter has not been fed: zeros before the first.
        model = family.ar
        shape = (self.lane.branches, 1, model.config.dim)
        self.features = torch.zeros(shape, dtype=model.dtype, device=device)
        vocab = model.config.vocab_size
        self.noise = request.noise(Purpose.TARGET)
        self.greedy = request.sampling.temperature == 0
        self.coupled = decoder.coupled or (self.greedy and decoder.relaxed is None)
        self.proposer: Foreseen | Drawn = (
            Foreseen(self.noise, request.sampling)
            if self.coupled or self.greedy
            else Drawn(request.seed, vocab, request.sampling, device)
        )
        self.uniform = Stream(request.seed, decoder.top_k, ACCEPT_PURPOSE, device)
        self.table = None if decoder.relaxed is None else neighbours(family.tokenizer.codebook, decoder.relaxed.k)

    def run(self) -> Steps:
        """Decode the whole grid."""
        first = yield from prefix(self.lane)
        self.tokens[:1] = self.request.draw(first, self.noise, [0])
        self.done = 1
        while self.done < self.lane.size:
            tree = yield from self.draft()
            yield from self.verify(tree)
            self.request.recorder.report("eagle", self.done, self.lane.size)

    def draft(self) -> Generator[list[Feed], list[Result], DraftTree]:
        """Let the drafter catch up with the tokens that stand, and grow a tree behind the last of them."""
        settings, done = self.decoder, self.done
        root = self.tokens[done - 1 : done]
        # A node at the last position would be fed for nothing: that token is drawn from the logits before it.
        left = self.lane.size - done
        depth = min(settings.depth, left - 1)
        if depth < 1:
            return DraftTree(root, [-1], [0], [0], [-1], None)
        fresh = range(self.known, done)
        [result] = yield [
            Feed(
                self.drafter,
                self.tokens[fresh.start : fresh.stop],
                fresh,
                [len(fresh) - 1],
                "draft",
                features=self.features,
                keep=True,
            )
        ]
        self.known = done
        # Nodes that are expanded lie in the slots that are left.
        beam = min(settings.top_k, left // max(1, depth - 1))
        growth = Growth(root, features_of(result), settings.top_k, beam)
        growth.add(self.proposer.children(logits_of(result), done, settings.top_k))
        for layer in range(1, depth):
            new = growth.expand()
            count = len(growth.fed)
            [result] = yield [
                Feed(
                    self.drafter,
                    growth.fed,
                    [done - 1 + d for d in growth.depths],
                    range(count - new, count),
                    "draft",
                    tree=Tree(done, masks.pack(growth.sees)),
                    features=growth.features,
                    keep=True,
                )
            ]
            growth.expanded(features_of(result))
            growth.add(self.proposer.children(logits_of(result), done + layer, settings.top_k))
        return growth.cut(min(settings.total, left))

    def verify(self, tree: DraftTree) -> Steps:
        """Run the target over a tree, keep the path that stands and draw one token more."""
        done, request = self.done, self.request
        positions = [done - 1 + layer for layer in tree.layers]
        draw = request.drawing(self.noise, [p + 1 for p in positions]) if self.coupled else None
        [result] = yield [
            Feed(self.lane, tree.tokens, positions, "all", "verify", draw, Tree(done - 1, tree.block()), keep=True)
        ]
        if self.coupled:
            path, token = self.drawn(tree, result)
        elif self.greedy:
            path, token = self.likeliest(tree, result)
        else:
            path, token = self.judged(tree, result)
        path = self.decoder.taken(tree, path)
        stop = done + len(path)
        chosen = upload(path, self.tokens.device)
        self.tokens[done : stop - 1] = tree.tokens[chosen[1:]]
        self.tokens[stop - 1 : stop] = token
        self.lane.move([done - 1 + node for node in path], done - 1)
        self.features = features_of(result)[:, chosen]
        self.done = stop

    def drawn(self, tree: DraftTree, result: Result) -> tuple[list[int], Tensor]:
        """The path of the tokens that the target drew, and the token behind it."""
        if result.tokens is None:
            raise RuntimeError("a feed that asked for tokens returned none")
        drawn, tokens = torch.stack([result.tokens, tree.tokens]).tolist()
        path = [0]
        for node in range(1, len(tree)):
            if tree.parents[node] == path[-1] and tokens[node] == drawn[path[-1]]:
                path.append(node)
        return path, result.tokens[path[-1] :][:1]

    def likeliest(self, tree: DraftTree, result: Result) -> tuple[list[int], Tensor]:
        """The path that LANTERN accepts at temperature 0, and the likeliest token behind it."""
        if self.decoder.relaxed is None or self.table is None:
            raise RuntimeError("without LANTERN, temperature 0 is coupled")
        positions = [self.done + layer for layer in tree.layers]
        p = greedy_scores(logits_of(result), self.request.sampling, positions).softmax(dim=-1)
        path = accept_greedily(p, tree, self.decoder.relaxed, self.table)
        last = p[path[-1]][None]
        return path, last.argmax(dim=-1).masked_fill(last[:, 0].isnan(), -1)

    def judged(self, tree: DraftTree, result: Result) -> tuple[list[int], Tensor]:
        """The path that rejection sampling leaves, and a token from what it leaves behind it."""
        device = self.tokens.device
        positions = [self.done + layer for layer in tree.layers]
        p = processed(logits_of(result), self.request.sampling, positions).softmax(dim=-1)
        # A row that is not finite is NaN throughout: told with what the host reads anyway, or by a token of -1.
        broken = p[:, 0].isnan()
        path = [0]
        if tree.q is not None:
            inner = sorted(set(tree.parents[1:]))
            row = {node: i for i, node in enumerate(inner)}
            where = [[-1] * self.decoder.top_k for _ in inner]
            for node in range(1, len(tree)):
                where[row[tree.parents[node]]][tree.order[node]] = node
            kids, nodes = upload(where, device), upload(inner, device)
            q = tree.q[upload([tree.expanded[n] for n in inner], device)]
            verdict = accept(
                p[nodes],
                q,
                tree.tokens[kids.clamp(min=0)],
                kids >= 0,
                self.uniform.take(len(inner)),
                self.decoder.relaxed,
                self.table,
            )
            host = torch.cat([verdict.choice, broken]).tolist()
            choice = host[: len(inner)]
            check_told(host[len(inner) :], "the model")
            while path[-1] in row and choice[row[path[-1]]] >= 0:
                path.append(where[row[path[-1]]][choice[row[path[-1]]]])
            p = p.index_copy(0, nodes, verdict.residual)
        noise = self.noise.rows([self.done + len(path) - 1])
        token = (p[path[-1]].log() + noise).argmax(dim=-1)
        return path, token if tree.q is not None else token.masked_fill(broken, -1)


def features_of(result: Result) -> Tensor:
    """The features of a result that was asked for them."""
    if result.features is None:
        raise RuntimeError("a feed that asked for features returned none")
    return result.features
