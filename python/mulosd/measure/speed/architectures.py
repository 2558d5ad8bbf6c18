"""Models of real sizes with random weights: for speed, which does not depend on what the weights say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...engine.family import Family
    from ...engine.models.ar_model import ARModel


@dataclass(frozen=True)
class Architecture:
    """Kind and sizes of an AR model, and of the images that it makes; the width of a head is 64.

    Source: the public configurations of LlamaGen (arXiv 2406.06525) and of Tar's AR de-tokenizers (arXiv 2506.18898),
    with the condition of their text-to-image models.
    """

    kind: str
    layers: int
    heads: int
    ffn: int
    cond_len: int
    cond_dim: int
    grid: int
    vocab: int = 16384

    @property
    def dim(self) -> int:
        return 64 * self.heads

    def model(self, grids: tuple[int, ...]) -> ARModel:
        """An untrained model that serves these grids."""
        from ...engine.models.ar_dtok import ARDTok, ARDTokConfig
        from ...engine.models.llamagen import LlamaGen, LlamaGenConfig
        from ...engine.models.transformer import Transformer, TransformerConfig

        sizes = (self.vocab, self.dim, self.layers, self.heads, self.ffn)
        if self.kind == "llamagen":
            return LlamaGen(LlamaGenConfig("caption", *sizes, grids, self.cond_len, cond_dim=self.cond_dim))
        if self.kind == "ar-dtok":
            positions = self.cond_len + max(grids) ** 2 - 1
            return ARDTok(ARDTokConfig(*sizes, positions, self.cond_len, grids, self.cond_dim))
        return Transformer(TransformerConfig(*sizes, self.cond_len, self.cond_dim, grids, global_cond=True))


ARCHITECTURES = {
    # The bundled family's.
    "tiny": Architecture("bundled", 5, 4, 768, 12, 256, 16, 512),
    "llamagen-b": Architecture("llamagen", 12, 12, 2048, 120, 2048, 32),
    "llamagen-l": Architecture("llamagen", 24, 16, 2816, 120, 2048, 32),
    "llamagen-xl": Architecture("llamagen", 36, 20, 3584, 120, 2048, 32),
    "ar-dtok-512": Architecture("ar-dtok", 30, 20, 3584, 729, 1152, 32),
    "ar-dtok-1024": Architecture("ar-dtok", 30, 20, 3584, 729, 1152, 64),
}
RATIOS = (2, 4)


def random_weights(name: str, grid: int | None = None, device: str = "cpu", seed: int = 0) -> Family:
    """A family of an architecture's sizes: its grid, half and a quarter of it, latent up-samplers, random weights.

    The tokenizer has the codebook's size and 16 px a token, but a small decoder: tokens are what is measured.

    Args:
        name: out of `ARCHITECTURES`.
        grid: side of the target grid; None takes the architecture's own.
        device: where the weights are drawn.
        seed: of the weights.

    Raises:
        ValueError: an unknown name, or a grid that is no multiple of 4.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"there is no architecture {name!r}; choose from {', '.join(ARCHITECTURES)}")
    a = ARCHITECTURES[name]
    side = a.grid if grid is None else grid
    if side < 4 or side % 4:
        raise ValueError(f"the grid must be a multiple of 4, so that it has a half and a quarter, got {side}")

    import torch

    from ...engine.conditioning import PhraseConditioner
    from ...engine.family import Family
    from ...engine.family_config import FamilyConfig
    from ...engine.models.text import TextEncoder, TextEncoderConfig, Vocabulary
    from ...engine.models.tokenizer import Tokenizer, TokenizerConfig
    from ...engine.models.upsampler import LatentResampler, ResamplerConfig

    grids = (side // 4, side // 2, side)
    where = torch.device(device)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []), where:
        torch.manual_seed(seed)
        vocabulary = Vocabulary({"picture": 3})
        # No layers: what a prompt's encoder costs is no part of the measurement.
        text = TextEncoder(TextEncoderConfig(vocabulary.size, a.cond_len, a.cond_dim, n_layers=0))
        ar = a.model(grids)
        tokenizer = Tokenizer(TokenizerConfig(a.vocab, channels=(32, 64, 128, 128)))
        pairs = [(small, large) for small in grids for large in grids if small < large]
        resamplers = {pair: LatentResampler(ResamplerConfig(*pair, 8, channels=256)) for pair in pairs}
        return Family(FamilyConfig(f"random {name}"), tokenizer, PhraseConditioner(vocabulary, text), [ar], resamplers)
