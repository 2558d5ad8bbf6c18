"""The pipeline of diffusers with an engine in the place of its own autoregressive model: a tiny one, random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from mulosd.engine.engine import Engine
from mulosd.glm_image import attach, prior_token_ids

diffusers = pytest.importorskip("diffusers", minversion="0.37")

GRID = 2
PROMPTS = ["a red apple on the table", "blue sky"]
HOW: dict[str, Any] = {"height": 32 * GRID, "width": 32 * GRID, "num_inference_steps": 2, "output_type": "np"}


@pytest.fixture(scope="module")
def engine(glm_image_folder: Path) -> Engine:
    return Engine.from_pretrained(glm_image_folder, grids=(GRID,), prompt_length=24)


@pytest.fixture
def pipeline(glm_image_folder: Path) -> Any:
    own = transformers.GlmImageForConditionalGeneration.from_pretrained(glm_image_folder / "vision_language_encoder")
    # It draws at random: out of one token, the best of the codes, that is greedy.
    own.generation_config.update(do_sample=True, top_k=1, temperature=1.0, top_p=1.0, suppress_tokens=[*range(64, 72)])
    torch.manual_seed(0)
    transformer = diffusers.GlmImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        text_embed_dim=32, time_embed_dim=16, condition_dim=8, prior_vq_quantizer_codebook_size=64,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4, 8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=1, sample_size=128,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    text = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=384, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
        )
    )
    found = diffusers.GlmImagePipeline(
        tokenizer=transformers.ByT5Tokenizer(),
        processor=transformers.AutoProcessor.from_pretrained(glm_image_folder / "processor"),
        text_encoder=text.eval(), vision_language_encoder=own.eval(), vae=vae.eval(), transformer=transformer.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip
    found.set_progress_bar_config(disable=True)
    return found


@pytest.mark.slow
def test_codes_and_images_are_those_of_the_pipeline_itself(pipeline: Any, engine: Engine) -> None:
    """Two prompts of different lengths, padded in front by the processor."""
    codes, _, _ = pipeline.generate_prior_tokens(PROMPTS, HOW["height"], HOW["width"])
    images = pipeline(PROMPTS, generator=torch.Generator().manual_seed(3), **HOW).images
    attach(pipeline, engine, sampling="temperature=0")
    ours, _, _ = pipeline.generate_prior_tokens(PROMPTS, HOW["height"], HOW["width"])
    assert len(codes.unique()) > 2
    assert torch.equal(ours, codes)
    found = pipeline(PROMPTS, generator=torch.Generator().manual_seed(3), **HOW).images
    assert np.array_equal(found, images)


@pytest.mark.slow
def test_codes_drawn_before_are_handed_over(pipeline: Any, engine: Engine) -> None:
    drawn = engine.generate(PROMPTS[0], sampling="temperature=0")
    wanted, _, _ = pipeline.generate_prior_tokens(PROMPTS[0], HOW["height"], HOW["width"])
    given = prior_token_ids(drawn.tokens)
    assert torch.equal(given, wanted)
    with pytest.raises(ValueError, match="integers"):
        prior_token_ids(given)


@pytest.mark.slow
def test_the_seed_of_the_pipeline_decides(pipeline: Any, engine: Engine) -> None:
    attach(pipeline, engine, "jacobi:window=8", "temperature=3:top_p=1")

    def codes(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        found, _, _ = pipeline.generate_prior_tokens(PROMPTS[1], HOW["height"], HOW["width"], generator=generator)
        return torch.as_tensor(found)

    assert torch.equal(codes(1), codes(1))
    assert not torch.equal(codes(1), codes(2))


def test_what_the_engine_does_not_draw_is_refused(pipeline: Any, engine: Engine, janus_folder: Path) -> None:
    attach(pipeline, engine)
    with pytest.raises(ValueError, match=r"load it with grids=\(4,\)"):
        pipeline.generate_prior_tokens(PROMPTS[0], 128, 128)
    with pytest.raises(ValueError, match="one square image"):
        pipeline.generate_prior_tokens(PROMPTS[0], 64, 96)
    with pytest.raises(ValueError, match="not for this engine"):
        pipeline.vision_language_encoder.generate(torch.zeros(1, 4).long(), pixel_values=torch.zeros(1, 3))
    with pytest.raises(ValueError, match="is no GLM-Image"):
        attach(pipeline, Engine.from_pretrained(janus_folder))
    with pytest.raises(ValueError, match="must be a GlmImagePipeline"):
        attach(object(), engine)
