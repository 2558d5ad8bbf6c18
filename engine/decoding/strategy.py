"""Variants of MuLo-SD that are more than a number: each is one file, which `mulo.py` does not know."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..batch import Feed, Result
from ..family import Family
from ..registry import Registry
from ..request import Request
from ..sampling import Logits, SamplingParams

# One line a strategy: the class by the setting of `mulo` that switches it on, and the value that leaves it off.
STRATEGIES = Registry(
    "mulosd.engine.decoding", {"cascade": ".cascade:Cascade", "entropy_radius": ".adaptive:EntropyRadius"}
)
OFF: dict[str, Any] = {"cascade": False, "entropy_radius": 0.0}


@dataclass(frozen=True)
class Strategy:
    """What a variant may change of MuLo-SD; each method here changes nothing."""

    setting: ClassVar[str] = ""

    @property
    def value(self) -> Any:
        """The value of the setting."""
        raise TypeError(f"{type(self).__name__} does not say the value of its setting")

    def check(self, rows_per_cycle: int | None) -> None:
        """ValueError when it does not go with the decoder's other settings."""

    def grids(self, family: Family, small: int) -> tuple[int, ...]:
        """Grids on which it holds a KV cache, between the drafter's of side `small` and the target's."""
        return ()

    def lift(self, decoder: Any, request: Request, draft: Tensor) -> Generator[list[Feed], list[Result], Tensor]:
        """Change a draft int64 [h, g] before it is up-sampled; `decoder` is the `MuloSD`, resolved."""
        yield from ()
        return draft

    def look(self, logits: Logits, params: SamplingParams, positions: range) -> Tensor | None:
        """What it must know of the target's logits [n, V] of candidates, float32 [n], until rejections are spread."""
        return None

    def spread(self, rejected: Tensor, seen: Tensor | None, radius: int) -> tuple[Tensor, int]:
        """Change what is drawn anew, bool [H, W], before it spreads by `radius`; `seen` is `look` on that grid."""
        return rejected, radius


def strategy(setting: str, value: Any) -> Strategy | None:
    """The strategy that a setting switches on, or None for its value that switches it off."""
    if value == OFF[setting]:
        return None
    found: Strategy = STRATEGIES[setting]() if value is True else STRATEGIES[setting](value)
    return found
