"""Images that a family draws itself, as tokens: what its parts are aligned on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..engine.conditioning import ClassConditioner
from ..engine.decoding import Decoder
from ..engine.engine import Engine
from ..engine.family import Family
from .sources import ImageSource

Prompts = Callable[[np.random.Generator], str]


def training_prompts(family: Family, source: ImageSource | None, given: Sequence[str] = ()) -> Prompts:
    """Random prompts to draw for: those given, else classes, else captions of the training images.

    Raises:
        ValueError: the family takes free text, and neither prompts nor images are given.
    """
    conditioner = family.conditioner
    if given:
        return lambda rng: given[int(rng.integers(len(given)))]
    if isinstance(conditioner, ClassConditioner):
        return lambda rng: str(rng.integers(conditioner.n_classes))
    if source is None:
        raise ValueError(
            f"family {family.name!r} takes free text: give prompts to draw for (--prompts-file FILE) or a folder of "
            f"captioned images (--images DIR)"
        )
    return lambda rng: source.captioned(rng, ())[0]


def draw(
    family: Family, prompts: Sequence[str], seeds: Sequence[int], decoder: Decoder, device: torch.device
) -> Tensor:
    """Tokens [B, n] that the family draws for prompts, in float32 and with its own sampling parameters."""
    # A new engine every time: the weights may have moved since the last drawing.
    with torch.autocast(device.type, enabled=False):
        engine = Engine(family, device=str(device), dtype="float32")
        drawn = engine.generate(prompts, decoder=decoder, seed=seeds, batch_size=len(prompts)).tokens
    # Made in inference mode, of which autograd wants copies.
    return drawn.flatten(1).clone().to(device)


class SamplePool:
    """Samples of models that do not change, each drawn at its first use and kept.

    Sample n depends on the seed and on n alone: a resumed run sees the same pool.

    Args:
        family: what draws.
        prompts: what for.
        decoder: how.
        size: number of samples.
        seed: of the prompts and of the draws.
    """

    def __init__(self, family: Family, prompts: Prompts, decoder: Decoder, *, size: int, seed: int = 0) -> None:
        if size < 1:
            raise ValueError(f"pool must be at least 1 sample, got {size}")
        self.family, self.prompts, self.decoder, self.size, self.seed = family, prompts, decoder, size, seed
        self._kept: dict[int, tuple[str, Tensor, int]] = {}

    def take(self, numbers: Sequence[int], device: torch.device) -> tuple[list[str], Tensor, list[int]]:
        """Prompts, tokens [B, n] and seeds of samples by number."""
        new = [n for n in dict.fromkeys(numbers) if n not in self._kept]
        if new:
            rngs = [np.random.default_rng([self.seed, n]) for n in new]
            asked = [self.prompts(rng) for rng in rngs]
            seeds = [int(rng.integers(2**62)) for rng in rngs]
            tokens = draw(self.family, asked, seeds, self.decoder, device).cpu()
            self._kept.update(zip(new, zip(asked, tokens, seeds, strict=True), strict=True))
        kept = [self._kept[n] for n in numbers]
        return [k[0] for k in kept], torch.stack([k[1] for k in kept]).to(device), [k[2] for k in kept]
