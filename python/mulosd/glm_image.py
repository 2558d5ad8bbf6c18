"""GLM-Image in two stages: the codes by an engine of ours, the image by the pipeline of diffusers.

`attach` puts an engine in the place of the pipeline's own autoregressive model; all else of the pipeline stays as it
is. `prior_token_ids` hands over codes that were drawn before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .engine.decoding.default import decoder_for
from .engine.decoding.spec import DecoderLike
from .engine.engine import Engine
from .engine.models.language import PADDING
from .engine.sampling import SamplingLike

if TYPE_CHECKING:
    from .engine.decoding.base import Decoder

# A code of ours stands for so many of the diffusion stage's a side.
ENLARGED = 2


def prior_token_ids(tokens: Tensor) -> Tensor:
    """Codes int64 [B, H, W] of an engine as `GlmImagePipeline(prior_token_ids=...)` takes them: int64 [B, 4*H*W]."""
    if tokens.dim() != 3 or tokens.is_floating_point():
        raise ValueError(f"codes must be integers [B, H, W], got {tokens.dtype} {list(tokens.shape)}")
    wide = tokens.repeat_interleave(ENLARGED, dim=1).repeat_interleave(ENLARGED, dim=2)
    return wide.flatten(1)


class AutoregressiveStage(nn.Module):
    """What the pipeline asks of its autoregressive model, answered by an engine. It has no weights of its own.

    Args:
        engine: of GLM-Image, with the grids that images are asked for.
        decoder: how to draw; None is the family's default, `serial`.
        sampling: how tokens are drawn; None takes the family's defaults.

    Raises:
        ValueError: an engine of another model.
    """

    def __init__(self, engine: Engine, decoder: DecoderLike = None, sampling: SamplingLike = None) -> None:
        super().__init__()
        family = engine.family
        if family.conditioner.kind != "glm-image":
            raise ValueError(f"family {family.name!r} is no GLM-Image: its conditions are {family.conditioner.kind}")
        self.engine, self.sampling = engine, sampling
        self.decoder: Decoder = decoder_for(family, decoder)

    @property
    def device(self) -> torch.device:
        """Where the engine runs."""
        return self.engine.family.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the engine's weights."""
        return self.engine.dtype

    def chosen(self, grid: int) -> Decoder:
        """The decoder for a grid; ValueError where it cannot draw it."""
        grids = self.engine.family.grids
        if grid not in grids:
            raise ValueError(
                f"the image takes {grid}x{grid} codes, this engine draws {', '.join(map(str, grids))} a side: load it "
                f"with grids=({grid},)"
            )
        if "grid" in self.decoder.settings():
            return self.decoder.changed(grid=grid)
        if grid != grids[-1]:
            raise ValueError(
                f"decoder {self.decoder.name!r} draws {grids[-1]}x{grids[-1]} codes, the largest grid, alone: load the "
                f"engine with grids=({grid},)"
            )
        return self.decoder

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        images_per_sample: Tensor | None = None,
        pixel_values: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Draw the codes of prompts; arguments as transformers' `generate` takes them of this model's processor.

        The seed of each image is drawn from torch's own generator, which the pipeline has seeded.

        Returns:
            int64 [B, n + S*S + G*G]: the prompts, zeros in the place of the small grid, which the pipeline does not
            read, and the codes of the image.

        Raises:
            ValueError: images to start from, or grids that the engine does not draw.
        """
        batch = len(input_ids)
        if pixel_values is not None or image_grid_thw is None:
            raise ValueError("images to start from are not for this engine: take the pipeline's own model for them")
        named = image_grid_thw.view(batch, -1, 3).tolist() if len(image_grid_thw) % batch == 0 else []
        grids = {tuple(tuple(grid) for grid in each) for each in named}
        shapes = next(iter(grids)) if len(grids) == 1 else ()
        if len(shapes) != 2 or any(t != 1 or h != w for t, h, w in shapes):
            raise ValueError(f"one square image a prompt is drawn, the processor asks for {image_grid_thw.tolist()}")
        (_, grid, _), (_, small, _) = shapes
        decoder, family = self.chosen(grid), self.engine.family
        first = family.model(grid).layout(grid).grids[0]
        if small != first:
            raise ValueError(f"the processor asks for a small grid of {small}x{small} codes, the engine draws {first}")
        seen = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        condition = family.conditioner.precomputed(input_ids.masked_fill(seen == 0, PADDING))
        seeds = torch.randint(0, 1 << 62, (batch,)).tolist()
        drawn = self.engine.generate(
            ["prompt"] * batch, decoder=decoder, sampling=self.sampling, seed=seeds, features=condition
        )
        before = input_ids.new_zeros(batch, small * small)
        return torch.cat([input_ids, before, drawn.tokens.flatten(1).to(input_ids)], dim=1)


def attach(pipeline: Any, engine: Engine, decoder: DecoderLike = None, sampling: SamplingLike = None) -> Any:
    """Have an engine draw the codes of a `GlmImagePipeline`; returns the pipeline.

    Args:
        pipeline: loaded, best with `vision_language_encoder=None`: its own model takes 18 GB for nothing.
        engine: of `vision_language_encoder` of the same repository.
        decoder, sampling: see `AutoregressiveStage`.

    Raises:
        ValueError: another pipeline or another model.
    """
    if not hasattr(pipeline, "generate_prior_tokens"):
        raise ValueError(f"the pipeline must be a GlmImagePipeline of diffusers, got a {type(pipeline).__name__}")
    pipeline.vision_language_encoder = AutoregressiveStage(engine, decoder, sampling)
    return pipeline
