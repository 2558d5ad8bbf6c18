"""A tiny family with random weights, for tests and for trying decoders without a trained model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .conditioning import ClassConditioner, Conditioner, PhraseConditioner
from .family import Family
from .family_config import FamilyConfig
from .models.eagle import EagleConfig, EagleDrafter
from .models.text import TextEncoder, TextEncoderConfig, Vocabulary
from .models.tokenizer import Tokenizer, TokenizerConfig
from .models.transformer import Transformer, TransformerConfig
from .models.upsampler import LatentResampler, ResamplerConfig


def random_family(
    grids: tuple[int, ...] = (2, 4, 8),
    vocab_size: int = 24,
    seed: int = 0,
    sharpness: float = 6.0,
    drafter: bool = False,
    classes: Sequence[str] = (),
    position_cond: int = 0,
) -> Family:
    """A family of random weights with two layers of 32 dimensions and 2 px a token.

    Args:
        grids: token side lengths; every pair that divides gets an up- and a down-sampler.
        vocab_size: codebook size.
        seed: of the weights.
        sharpness: factor on the output head, so that distributions are far from uniform.
        drafter: give it a feature drafter for every grid, of random weights too.
        classes: names of classes to condition it on, instead of phrases.
        position_cond: width of what every position is told of the condition, see `TransformerConfig`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        conditioner: Conditioner
        if classes:
            conditioner, cond_len = ClassConditioner(len(classes), classes), 1
        else:
            vocabulary = Vocabulary({"apple": 3, "pear": 4, "red": 5, "blue": 6}, frozenset({"a", "on", "and"}))
            text = TextEncoder(TextEncoderConfig(vocabulary.size, 4, dim=16, n_heads=2, ffn_dim=32))
            conditioner, cond_len = PhraseConditioner(vocabulary, text), 4
        sizes = TransformerConfig(
            vocab_size,
            32,
            2,
            2,
            48,
            cond_len,
            16,
            grids,
            head_dim=16,
            global_cond=True,
            n_classes=len(classes),
            position_cond=position_cond,
        )
        ar = Transformer(sizes)
        for parameter in ar.parameters():
            if parameter.dim() == 2:
                parameter.data.normal_(std=0.15)
        ar.output.weight.data *= sharpness
        pairs = [(a, b) for a in grids for b in grids if a != b and max(a, b) % min(a, b) == 0]
        resamplers = {(a, b): LatentResampler(ResamplerConfig(a, b, 4, channels=8, blocks=2)) for a, b in pairs}
        tokenizer = Tokenizer(TokenizerConfig(vocab_size, 4, channels=(8,), decoder_blocks=1))
        eagle = EagleDrafter(EagleConfig(grids, 16, 2, 32), ar) if drafter else None
        return Family(FamilyConfig("random"), tokenizer, conditioner, [ar], resamplers, eagle=eagle)
