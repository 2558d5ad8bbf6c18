"""A draft drawn anew, all tokens at once, from the product of the target's and the up-sampler's distributions.

An arg-max up-sampled draft lacks what the draft does not say, such as texture. The target knows it, but not the
picture that the draft wants. With p the target's distribution behind the tokens to the left, q the up-sampler's given
the draft, and pi the frequencies of codes, tokens are drawn from `p * q / pi`, normalised: Bayes' rule if the left
context and the draft are independent given the token. A product of experts (Hinton, Training Products of Experts by
Minimizing Contrastive Divergence, 2002) with exponents 1, 1 and -1.

Draws keep their noise from pass to pass. So repeated passes are a Jacobi iteration (Song et al., arXiv 2002.03629; with
coupled draws So et al., arXiv 2510.24211): after k of them the first k tokens stand, and what stands when nothing
changes any more is what drawing one token after the other from the product gives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..request import Request
from ..runner import sample
from ..sampling import Logits, Purpose, SamplingParams, processed


class LatentDraft:
    """A draft as its latent up-sampler sees it on a larger grid.

    Args:
        request: whose draft.
        draft: int64 [h, g], leading rows on a grid of side g.
        grid: side of the larger grid; the family has a latent up-sampler to it.
        purpose: of the random numbers of redrawing.
    """

    def __init__(self, request: Request, draft: Tensor, grid: int, purpose: Purpose) -> None:
        self.request = request
        self.resampler = request.family.resampler(draft.shape[-1], grid)
        self.codebook = request.family.tokenizer.codebook
        self.features = self.resampler(self.codebook[draft[None]])[0]
        self.noise = request.noise(purpose)

    def tokens(self) -> Tensor:
        """The likeliest tokens int64 [h', grid]: the up-sampled draft."""
        return self.resampler.pick(self.features, self.codebook)

    def redraw(self, logits: Logits, positions: range) -> Tensor:
        """Tokens int64 [n] of raster positions, drawn from the product, given the target's logits [n, V].

        The target's factor is what its tokens are drawn from, after guidance, temperature, top-k and top-p: what these
        drop cannot be drawn, however sure the up-sampler is of it, and greedy sampling leaves the up-sampler no say.
        """
        evidence = self.resampler.evidence(self.features.flatten(0, 1)[positions.start : positions.stop], self.codebook)
        # Both factors are finite but for what p drops, so the product always has a token that can be drawn.
        product = processed(logits, self.request.sampling, positions) + evidence
        return sample(Logits(product, None, torch.float32), [self.noise], [positions], SamplingParams())
