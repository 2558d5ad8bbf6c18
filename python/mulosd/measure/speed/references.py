"""The models of transformers that are drawn beside ours, at sizes that fit a CPU: random weights, real vocabularies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...engine.conditioning import Condition
from ...engine.family import Family
from ...engine.hub import Wanted, load_repository
from ...engine.sampling import SamplingParams

PROMPT = 32  # text tokens
FIRST = 64  # the first id of text in these vocabularies that means nothing


@dataclass(frozen=True)
class Reference:
    """A model in both implementations.

    Attributes:
        family: ours, of the weights that transformers saved.
        condition: of one prompt.
        generate: transformers' own loop with its static cache, by seed.
        tokens: codes that an image takes, all grids.
        sampling: how tokens are drawn in both.
        mulo: the settings of MuLo-SD that go with it, or None where it has no draft.
    """

    family: Family
    condition: Condition
    generate: Callable[[int], Tensor]
    tokens: int
    sampling: SamplingParams
    mulo: str | None


def seeded(make: Callable[[], Any], seed: int = 0) -> Any:
    """What `make` makes with torch's generator seeded, put back behind it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def janus(folder: Path, grid: int) -> Reference:
    """Janus-Pro of 12 layers and 768 dimensions, with its 16,384 codes."""
    import transformers as t

    config = t.JanusConfig(
        text_config=t.LlamaConfig(
            vocab_size=4096, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12
        ),
        vision_config=t.JanusVisionConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16 * grid, projection_dim=768,
            num_image_tokens=grid * grid,
        ),
        vq_config=t.JanusVQVAEConfig(
            base_channels=32, num_res_blocks=1, projection_dim=768, image_token_embed_dim=768, num_patches=grid
        ),
    )  # fmt: skip
    model = seeded(lambda: t.JanusForConditionalGeneration(config).eval())
    model.generation_config = t.GenerationConfig(
        bos_token_id=0, pad_token_id=1, eos_token_id=2, generation_kwargs={"boi_token_id": 3}, guidance_scale=5.0
    )
    model.save_pretrained(folder)
    ids = torch.cat([torch.tensor([[0]]), torch.arange(FIRST, FIRST + PROMPT - 2)[None], torch.tensor([[3]])], dim=1)

    def generate(seed: int) -> Tensor:
        torch.manual_seed(seed)
        found: Tensor = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_mode="image",
            do_sample=True,
            cache_implementation="static",
        )
        return found

    family = load_repository(folder, Wanted("janus", prompt_length=PROMPT))
    return Reference(family, family.conditioner.precomputed(ids), generate, grid * grid, family.sampling, None)


def emu3(folder: Path, grid: int) -> Reference:
    """Emu3-Gen of 12 layers and 512 dimensions, with its vocabulary of 184,622 tokens, 32,768 of them codes."""
    import transformers as t

    text, codes = 151854, 32768
    vocabulary = {f"<|visual token {code:06d}|>": text + code for code in range(codes)}
    vocabulary |= {"<|extra_200|>": 151846, "<image>": 151851}
    config = t.Emu3Config(
        text_config=t.Emu3TextConfig(
            hidden_size=512, intermediate_size=1792, num_hidden_layers=12, num_attention_heads=8, num_key_value_heads=2
        ),
        vq_config=t.Emu3VQVAEConfig(
            base_channels=32, channel_multiplier=[1, 1, 1, 2], num_res_blocks=1, hidden_size=64
        ),
        vocabulary_map=vocabulary,
    )
    model = seeded(lambda: t.Emu3ForConditionalGeneration(config).eval())
    model.save_pretrained(folder)
    ids = torch.arange(FIRST, FIRST + PROMPT)[None]
    # Tensors: as lists they would take longer than the model.
    visual, row_end = torch.arange(text, text + codes), torch.tensor([151846])

    def allowed(_: int, found: Tensor) -> Tensor:
        return row_end if (len(found) - PROMPT + 1) % (grid + 1) == 0 else visual

    def generate(seed: int) -> Tensor:
        torch.manual_seed(seed)
        found: Tensor = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=grid * (grid + 1) - 1, do_sample=True,
            top_k=2048, guidance_scale=3.0, negative_prompt_ids=ids + PROMPT,
            negative_prompt_attention_mask=torch.ones_like(ids), prefix_allowed_tokens_fn=allowed,
            cache_implementation="static",
        )  # fmt: skip
        return found

    family = load_repository(folder, Wanted("emu3", grids=(grid // 2, grid), prompt_length=PROMPT))
    given, null = (family.conditioner.precomputed(tokens) for tokens in (ids, ids + PROMPT))
    condition = replace(given, null=null.features)
    mulo = "mulo:upsampler=nearest"  # candidates are planted: what they cost is the verification
    return Reference(family, condition, generate, grid * grid, family.sampling, mulo)


def glm_image(folder: Path, grid: int) -> Reference:
    """GLM-Image's AR stage of 12 layers and 768 dimensions, with 16,512 outputs; the small grid has half the side."""
    import transformers as t

    text, small = 16512, grid // 2
    config = t.GlmImageConfig(
        text_config=t.GlmImageTextConfig(
            vocab_size=20000, hidden_size=768, intermediate_size=2560, num_hidden_layers=12, num_attention_heads=12,
            num_key_value_heads=2, pad_token_id=text,
            rope_parameters={
                "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [4, 6, 6],
            },
        ),
        vision_config=t.GlmImageVisionConfig(
            depth=1, hidden_size=32, num_heads=2, image_size=64, intermediate_size=32
        ),
        vq_config=t.GlmImageVQVAEConfig(latent_channels=32, embed_dim=64),
        image_token_id=text + 1,
    )  # fmt: skip
    model = seeded(lambda: t.GlmImageForConditionalGeneration(config).eval())
    model.generation_config = t.GenerationConfig(do_sample=True, temperature=0.9, top_p=0.75, pad_token_id=text)
    model.save_pretrained(folder)
    ids = torch.cat([torch.arange(text + FIRST, text + FIRST + PROMPT - 1), torch.tensor([16384])])[None]
    count = grid * grid + small * small
    # Sampled ends would make an image shorter.
    model.generation_config.suppress_tokens = list(range(16384, 16512))
    grids = torch.tensor([[1, grid, grid], [1, small, small]])

    def generate(seed: int) -> Tensor:
        torch.manual_seed(seed)
        found: Tensor = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), image_grid_thw=grids,
            images_per_sample=torch.tensor([2]), max_new_tokens=count, do_sample=True, cache_implementation="static",
        )  # fmt: skip
        return found

    wanted = Wanted("glm-image", grids=(grid,), prompt_length=PROMPT, first_grid=small)
    family = load_repository(folder, wanted)
    condition = family.conditioner.precomputed(ids)
    return Reference(family, condition, generate, count, family.sampling, "mulo:upsampler=nearest")


REFERENCES: dict[str, Callable[[Path, int], Reference]] = {"janus": janus, "emu3": emu3, "glm-image": glm_image}
