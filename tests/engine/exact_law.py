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
    """Probabilities float64 [V, V, V] of the first three tokens of a 2x2 image of an apple."""
    vocab = family.ar.config.vocab_size
    every = torch.cartesian_prod(*[torch.arange(vocab)] * 3)
    n = len(every)
    tokens = torch.cat([every, torch.zeros(n, 1, dtype=torch.int64)], dim=1)
    cond = family.ar(family.features(["apple"]).expand(n, -1, -1), tokens, 2)[:, :3].flatten(0, 1)
    uncond = family.ar(family.null_features(n), tokens, 2)[:, :3].flatten(0, 1) if sampling.guided else None
    s = sampling
    p = processed_logits(cond, uncond, s.cfg_scale, s.temperature, s.top_k, s.top_p).softmax(-1)
    exact = torch.zeros(vocab, vocab, vocab, dtype=torch.float64)
    exact[every[:, 0], every[:, 1], every[:, 2]] = (
        p.view(n, 3, vocab).gather(2, every[..., None])[..., 0].double().prod(dim=1)
    )
    assert abs(float(exact.sum()) - 1) < 1e-5
    return exact


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


def assert_follows_target(decoder: Decoder, sampling: SamplingParams, runs: int = 4000) -> None:
    """Chi-square over the first three tokens of 2x2 images, pairs (0, 1) and (1, 2), against exact probabilities.

    With 4,000 images a total variation of 0.05 in a pair is found with probability above 0.99 at level 1e-4.
    """
    engine = Engine(random_family(vocab_size=6, sharpness=2.0, drafter=True))
    made = engine.generate("apple", decoder=decoder, sampling=sampling, num_images=runs, batch_size=64)
    tokens, exact = made.tokens.flatten(1), joint(engine.family, sampling)
    for pair, probability in (((0, 1), exact.sum(2)), ((1, 2), exact.sum(0))):
        counts = torch.zeros_like(probability)
        counts.index_put_(tuple(tokens[:, i] for i in pair), torch.ones(runs, dtype=torch.float64), accumulate=True)
        assert_follows(counts, probability)
