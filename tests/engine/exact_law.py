"""Does a decoder draw from the target's distribution? Tiny images against exact probabilities."""

import torch
from scipy.stats import chi2
from torch import Tensor

from mulosd.engine.decoding import Decoder
from mulosd.engine.engine import Engine
from mulosd.engine.family import Family
from mulosd.engine.random_family import random_family
from mulosd.engine.sampling import SamplingParams
from mulosd.kernels.sampling import processed_logits


@torch.inference_mode()
def joint(family: Family, sampling: SamplingParams) -> Tensor:
    """Probabilities float64 [V, V, V, V] of the tokens of a 2x2 image of an apple, by the definition."""
    vocab = family.ar.config.vocab_size
    every = torch.cartesian_prod(*[torch.arange(vocab)] * 4)
    n, s = len(every), sampling
    cond = family.ar(family.features(["apple"]).expand(n, -1, -1), every, 2)
    uncond = family.ar(family.null_features(n), every, 2) if sampling.guided else None
    exact = torch.ones(n, dtype=torch.float64)
    for i in range(4):
        # LlamaGen's step i draws position i; with an interval, guidance ends behind step interval + 1.
        guided = uncond is not None and (s.cfg_interval < 0 or i <= s.cfg_interval + 1)
        null = uncond[:, i] if uncond is not None and guided else None
        p = processed_logits(cond[:, i], null, s.cfg_scale, s.temperature, s.top_k, s.top_p).softmax(-1)
        exact *= p.gather(1, every[:, i : i + 1])[:, 0].double()
    assert abs(float(exact.sum()) - 1) < 1e-5
    return exact.view([vocab] * 4)


def pairs(exact: Tensor) -> list[tuple[tuple[int, int], Tensor]]:
    """Probabilities [V, V] of neighbouring tokens in raster order."""
    return [((0, 1), exact.sum((2, 3))), ((1, 2), exact.sum((0, 3))), ((2, 3), exact.sum((0, 1)))]


def assert_follows(counts: Tensor, probability: Tensor, level: float = 1e-4) -> None:
    """Chi-square of counts against probabilities, cells below 5 expected pooled; impossible cells must be empty."""
    runs = float(counts.sum())
    wanted = probability.double() * runs
    counts = counts.double()
    assert (counts[wanted == 0] == 0).all()
    likely = wanted >= 5
    rest = (runs - float(counts[likely].sum()), runs - float(wanted[likely].sum()))
    statistic = float(((counts[likely] - wanted[likely]) ** 2 / wanted[likely]).sum())
    if rest[1] > 1:
        statistic += (rest[0] - rest[1]) ** 2 / rest[1]
    assert statistic < chi2.ppf(1 - level, int(likely.sum())), statistic


def toy_family() -> Family:
    """Six tokens and a drafter, distributions that differ much from place to place."""
    return random_family(vocab_size=6, sharpness=2.0, drafter=True)


def assert_follows_target(decoder: Decoder, sampling: SamplingParams, runs: int = 4000) -> None:
    """Chi-square over 2x2 images, each pair of neighbouring tokens in raster order, against exact probabilities.

    With 4,000 images a total variation of 0.05 in a pair is found with probability above 0.99 at level 1e-4.
    """
    engine = Engine(toy_family())
    made = engine.generate("apple", decoder=decoder, sampling=sampling, num_images=runs, batch_size=64)
    tokens = made.tokens.flatten(1)
    for pair, probability in pairs(joint(engine.family, sampling)):
        counts = torch.zeros_like(probability)
        counts.index_put_(tuple(tokens[:, i] for i in pair), torch.ones(runs, dtype=torch.float64), accumulate=True)
        assert_follows(counts, probability)
