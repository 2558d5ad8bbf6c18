"""Repositories of tiny models with random weights, as transformers' own classes save them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

TEXT = "a red apple on the table blue sky low quality blurry distorted watermark , *"
WORDS = [*TEXT.split(), *map(str, range(65))]


def tokenizer(special: dict[str, str], extra: list[str]) -> Any:
    """A tokenizer that splits at spaces and knows a few words; `special` names some of the tokens."""
    vocabulary = {word: i for i, word in enumerate([*dict.fromkeys(special.values()), *extra, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=False)]
    )
    known = ("unk_token", "pad_token", "bos_token", "eos_token")
    own = {key: value for key, value in special.items() if key not in known and not key.isdigit()}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, extra_special_tokens=own, **{key: special[key] for key in known}, padding_side="left"
    )


def drawn(model: Any, seed: int) -> Any:
    """Random weights of about unit variance throughout, so that every part tells in the logits and tokens differ."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "vqmodel" in name and parameter.dim() > 1 and "quantize" not in name:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            elif "embed" in name or "quantize" in name:
                parameter.normal_()
            elif parameter.dim() > 1:
                parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
            elif "bias" in name:
                parameter.normal_(std=0.05)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model.eval()


CHAT = (
    "{% for message in messages %}{{ message['role'] }} : {% for part in message['content'] %}"
    "{{ part['text'] }}{% endfor %}{% endfor %}{% if add_generation_prompt %} assistant :{% endif %}"
)


def janus(folder: Path, grid: int = 4, seed: int = 0) -> Path:
    """A Janus of 2 layers and 64 codes, with its processor."""
    special = {
        "unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>",
        "image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>",
    }  # fmt: skip
    words = tokenizer(special, ["user", "assistant", ":"])
    ids = {name: words.convert_tokens_to_ids(value) for name, value in special.items()}
    config = transformers.JanusConfig(
        text_config=transformers.LlamaConfig(
            vocab_size=len(words), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, max_position_embeddings=256, rope_theta=500.0,
        ),
        vision_config=transformers.JanusVisionConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=grid * 4, patch_size=4,
            projection_dim=64, num_image_tokens=grid * grid,
        ),
        vq_config=transformers.JanusVQVAEConfig(
            embed_dim=8, num_embeddings=64, latent_channels=32, base_channels=32, channel_multiplier=[1, 1, 2],
            num_res_blocks=1, projection_dim=64, image_token_embed_dim=64, num_patches=grid,
        ),
        image_token_id=ids["image_token"],
    )  # fmt: skip
    model = transformers.JanusForConditionalGeneration(config)
    drawn(model, seed)
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=ids["bos_token"], pad_token_id=ids["pad_token"], eos_token_id=ids["eos_token"],
        generation_kwargs={"boi_token_id": ids["boi_token"]}, guidance_scale=5.0,
    )  # fmt: skip
    model.save_pretrained(folder)
    images = transformers.JanusImageProcessor(size={"height": grid * 4, "width": grid * 4})
    transformers.JanusProcessor(images, words, chat_template=CHAT, num_image_tokens=grid * grid).save_pretrained(folder)
    return folder


CODES = 64


def emu3(folder: Path, seed: int = 0) -> Path:
    """An Emu3 of 2 layers and 64 codes, with its processor."""
    special = {
        "unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>",
        "image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>", "image_wrapper_token": "<img>",
        "eof_token": "<eof>", "eol_token": "<|extra_200|>",
    }  # fmt: skip
    # The last code first: ids and codes are not to be mixed up.
    visual = [f"<|visual token {code:06d}|>" for code in reversed(range(CODES))]
    words = tokenizer(special, visual)
    config = transformers.Emu3Config(
        text_config=transformers.Emu3TextConfig(
            vocab_size=len(words), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, pad_token_id=words.pad_token_id,
            bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        ),
        vq_config=transformers.Emu3VQVAEConfig(
            codebook_size=CODES, base_channels=32, channel_multiplier=[1, 1, 1, 2], num_res_blocks=1, hidden_size=64,
        ),
        vocabulary_map=words.get_vocab(),
    )  # fmt: skip
    model = drawn(transformers.Emu3ForConditionalGeneration(config), seed)
    model.save_pretrained(folder, max_shard_size="400KB")
    images = transformers.Emu3ImageProcessor()
    transformers.Emu3Processor(images, words, chat_template=CHAT).save_pretrained(folder)
    return folder


def glm_image(folder: Path, seed: int = 0) -> Path:
    """GLM-Image's AR stage of 2 layers and 64 codes, in the folders of its pipeline, with its processor."""
    special = {
        "unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<start>", "eos_token": "<end>",
        "image_token": "<image>", "grid_bos_token": "<sop>", "grid_eos_token": "<eop>",
    }  # fmt: skip
    # Image codes are the first tokens, then the start and the end of an image.
    codes = [f"<code {code}>" for code in range(CODES)]
    names = [*codes, special["bos_token"], special["eos_token"]]
    words = tokenizer({**{str(i): name for i, name in enumerate(names)}, **special}, ["user", "assistant", ":"])
    config = transformers.GlmImageConfig(
        text_config=transformers.GlmImageTextConfig(
            vocab_size=len(words), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=2048, pad_token_id=words.pad_token_id,
            eos_token_id=CODES + 1, vision_vocab_size=CODES + 8,
            rope_parameters={
                "rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2],
            },
        ),
        vision_config=transformers.GlmImageVisionConfig(
            depth=1, hidden_size=32, num_heads=2, image_size=64, patch_size=16, intermediate_size=32
        ),
        vq_config=transformers.GlmImageVQVAEConfig(embed_dim=16, num_embeddings=CODES, latent_channels=32),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        image_start_token_id=CODES, image_end_token_id=CODES + 1,
    )  # fmt: skip
    model = drawn(transformers.GlmImageForConditionalGeneration(config), seed)
    model.generation_config = transformers.GenerationConfig(
        do_sample=True, temperature=0.9, top_p=0.75, pad_token_id=words.pad_token_id, eos_token_id=CODES + 1
    )
    model.save_pretrained(folder / "vision_language_encoder")
    images = transformers.GlmImageImageProcessor()
    transformers.GlmImageProcessor(images, words, chat_template=CHAT).save_pretrained(folder / "processor")
    names = {"_class_name": "GlmImagePipeline"}
    names["vision_language_encoder"] = ["transformers", "GlmImageForConditionalGeneration"]  # type: ignore[assignment]
    (folder / "model_index.json").write_text(json.dumps(names), encoding="utf-8")
    return folder
