"""Up-samplers: drafted tokens of a small grid to candidate tokens of the target grid."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from .family import Family
from .paths import expanded
from .super_resolution import lanczos, super_resolve, super_resolve_with

UPSAMPLERS = ("latent", "pixel", "nearest", "srgan", "sr")
# Weights of a super-resolution network take the place of a name.
WEIGHTS = (".pth", ".pt", ".safetensors", ".ckpt")


def check_upsampler(name: str) -> None:
    """Raise ValueError unless `name` is an up-sampler or a file of super-resolution weights."""
    if name in UPSAMPLERS:
        return
    if not name.endswith(WEIGHTS):
        raise ValueError(
            f"there is no up-sampler {name!r}; choose one of {', '.join(UPSAMPLERS)}, or a file of super-resolution "
            f"weights ({', '.join(WEIGHTS)})"
        )
    if not expanded(name).is_file():
        raise ValueError(f"there is no file of super-resolution weights {name}")


def settled_upsampler(family: Family, name: str | None) -> str:
    """The up-sampler that a decoder uses: the one that it names, or the family's own.

    Raises:
        ValueError: it is "srgan" and the family has no such network.
    """
    chosen = name or family.upsampler
    if chosen == "srgan":
        _ = family.super_resolver
    return chosen


def upsample(family: Family, tokens: Tensor, target: int, method: str) -> Tensor:
    """Candidate tokens for the rows of the target grid that the drafted rows cover.

    Args:
        family: tokenizer, latent resamplers and super-resolution network.
        tokens: int64 [B, h, g]: h leading rows of a draft on a grid of side g.
        target: side of the target grid.
        method: "latent" (learned, row-causal), "nearest" (each token repeated: for tokens that say what is where rather
            than how it looks), "pixel" (decode, Lanczos, encode), "srgan" (decode, the family's
            own super-resolution network, encode), "sr" (Real-ESRGAN in its place; needs `pip install 'mulosd[sr]'`), or
            the weights file of such a network (needs `pip install 'mulosd[spandrel]'`).

    Returns:
        int64 [B, h*r, target].

    Source: MuLo-SD, arXiv 2601.05149, the latent and the training-free pixel up-sampler.
    """
    if method == "latent":
        return family.resampler(tokens.shape[-1], target).resample(tokens, family.tokenizer.codebook)
    if method == "nearest":
        ratio = target // tokens.shape[-1]
        return tokens.repeat_interleave(ratio, dim=-2).repeat_interleave(ratio, dim=-1)
    return family.tokenizer.encode(enlarge(family, tokens, target, method))


def upsample_latents(family: Family, tokens: Tensor, target: int, method: str) -> Tensor:
    """What `upsample` finds the nearest codes of: vectors float [B, h*r, target, code_dim]; arguments are the same."""
    if method == "latent":
        return family.resampler(tokens.shape[-1], target)(family.tokenizer.codebook[tokens])
    if method == "nearest":
        return family.tokenizer.codebook[upsample(family, tokens, target, method)]
    return family.tokenizer.latents(enlarge(family, tokens, target, method))


def upsample_with_latents(family: Family, tokens: Tensor, target: int, method: str) -> tuple[Tensor, Tensor]:
    """`upsample` and `upsample_latents` of the same draft."""
    if method != "latent":
        if method == "nearest":
            found = upsample(family, tokens, target, method)
            return found, family.tokenizer.codebook[found]
        image = enlarge(family, tokens, target, method)
        return family.tokenizer.encode(image), family.tokenizer.latents(image)
    resampler, codebook = family.resampler(tokens.shape[-1], target), family.tokenizer.codebook
    z = resampler(codebook[tokens])
    return resampler.pick(z, codebook), z


def enlarge(family: Family, tokens: Tensor, target: int, method: str) -> Tensor:
    """Images [B, 3, H, W] in [-1, 1] of drafted tokens, enlarged; as `upsample`, without "latent"."""
    check_upsampler(method)
    source = tokens.shape[-1]
    image = family.tokenizer.decode(tokens).clamp(-1, 1)
    size = (image.shape[2] * target // source, image.shape[3] * target // source)
    if method == "srgan":
        image = family.super_resolver.enlarge(image, target // source)
    elif method == "sr":
        image = super_resolve(image, target // source)
    elif method == "pixel":
        image = lanczos(image, size)
    else:
        image = super_resolve_with(Path(method), image, size)
    return image.clamp(-1, 1)


def downsample(family: Family, tokens: Tensor, target: int, method: str) -> Tensor:
    """D_r: verified rows [B, H, G] of the target grid to drafter tokens [B, H/r, target] (multi-cycle decoding)."""
    check_upsampler(method)
    source = tokens.shape[-1]
    if method == "latent":
        return family.resampler(source, target).resample(tokens, family.tokenizer.codebook)
    if method == "nearest":
        return tokens[..., :: source // target, :: source // target]
    image = family.tokenizer.decode(tokens).clamp(-1, 1)
    return family.tokenizer.encode(F.avg_pool2d(image, source // target))
