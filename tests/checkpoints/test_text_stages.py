"""The text encoder and the language model through transformers, at toy size with random weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mulosd.checkpoints import load_ta_tok
from mulosd.checkpoints.convert import convert_tar
from mulosd.engine.conditioning import CaptionConditioner, DialectConditioner
from mulosd.engine.conditioning import pretrained as pretrained_module
from mulosd.engine.conditioning.dialect import folded
from mulosd.engine.decoding import MuloSD, Serial
from mulosd.engine.engine import Engine
from mulosd.engine.family import Family
from mulosd.engine.likelihood import nll
from mulosd.engine.sampling import SamplingParams

transformers = pytest.importorskip("transformers")


def save_tokenizer(folder: Path, words: list[str], template: str | None = None) -> int:
    """A tokenizer of whole words; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if template is None:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    fast.add_tokens([w for w in words if w.startswith("<")])
    fast.chat_template = template
    fast.save_pretrained(folder)
    return len(fast)


@torch.inference_mode()
def test_captions_through_t5(tmp_path: Path) -> None:
    size = save_tokenizer(tmp_path, ["a", "red", "fox"])
    config = transformers.T5Config(vocab_size=size, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4)
    torch.manual_seed(0)
    encoder = transformers.T5EncoderModel(config).eval()
    encoder.save_pretrained(tmp_path)
    conditioner = CaptionConditioner(6, 16, str(tmp_path))
    found = conditioner.condition(["A red fox!", "fox"])
    assert found.mask is not None and found.mask.sum(dim=1).tolist() == [4, 2]
    assert found.mask[:, -1].all() and not found.features[1, :4].any()
    # Padding does not reach the caption's own features: they are those of the caption alone.
    alone = encoder(torch.tensor([[5, 1]])).last_hidden_state[0]
    assert torch.allclose(found.features[1, 4:], alone, atol=1e-5)
    with pytest.raises(ValueError, match="gives features of width 16, this family takes 2048"):
        CaptionConditioner(6, 2048, str(tmp_path)).condition(["fox"])


TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def save_language_model(folder: Path) -> Any:
    """A Qwen2 with random weights that writes TA-Tok ids, as Tar's is published: config.json names a model type that
    transformers does not know, and some tensors are not the language model's. Returns the model."""
    words = ["system", "user", "assistant", "<im_start>", "<S0>", "<S1>", "<S2>", *(f"<I{i}>" for i in range(32))]
    size = save_tokenizer(folder, words, TEMPLATE)
    config = transformers.Qwen2Config(
        vocab_size=size, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, eos_token_id=None, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(config).eval()
    model.save_pretrained(folder)
    described = json.loads((folder / "config.json").read_text())
    described |= {"model_type": "llava_qwen", "architectures": ["LlavaQwenForCausalLM"], "mm_hidden_size": 1152}
    (folder / "config.json").write_text(json.dumps(described))
    weights = load_file(folder / "model.safetensors")
    weights["model.mm_projector.0.weight"] = torch.zeros(16, 1152)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return model


def written_directly(model: Any, folder: Path, prompt: str, seed: int) -> torch.Tensor:
    """The 81 ids that Tar's script takes from `Qwen2ForCausalLM.generate` for a prompt."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = f"system You are a helpful assistant. user {prompt} assistant <im_start><S2>"
    torch.manual_seed(seed)
    written = model.generate(
        tokenizer(text, return_tensors="pt").input_ids,
        max_new_tokens=81, do_sample=True, temperature=1.0, top_p=0.95, top_k=1200,
    )  # fmt: skip
    ids = [int(i) for i in re.findall(r"<I(\d+)>", tokenizer.batch_decode(written)[0])][:81]
    return torch.tensor([ids + [0] * (81 - len(ids))])


def convert(files: Any, llm: Path, output: Path) -> Path:
    ar = {pixels: str(files[f"tar_{pixels // 2}.pth"]) for pixels in (8, 16)}
    return convert_tar(ar, str(files["ta_tok.pth"]), str(files["vq.pt"]), output, llm=str(llm))


def test_the_language_model_of_tar_is_loaded_as_its_scripts_load_it(tmp_path: Path, files: Any) -> None:
    model = save_language_model(tmp_path / "llm")
    with pytest.raises(ValueError, match="llava_qwen"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "llm")
    conditioner = Family.load(convert(files, tmp_path / "llm", tmp_path / "tar")).conditioner
    assert isinstance(conditioner, DialectConditioner)
    for seed in (0, 9):
        ids = conditioner.write("a red fox", seed)
        assert torch.equal(ids, written_directly(model, tmp_path / "llm", "a red fox", seed)) and len(ids.unique()) > 3


def test_what_is_no_language_model_of_tar_is_refused_not_filled_with_random_numbers(tmp_path: Path, files: Any) -> None:
    save_language_model(tmp_path)
    conditioner = DialectConditioner(81, load_ta_tok(files["ta_tok.pth"]), str(tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"no whole Qwen2ForCausalLM: it lacks model\.norm\.weight"):
        conditioner.write("a", 0)
    described = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**described, "model_type": "gpt2"}))
    with pytest.raises(ValueError, match="model_type 'gpt2'; Qwen2ForCausalLM takes qwen2 or llava_qwen"):
        conditioner.write("a", 0)


def test_tar_through_its_language_model(tmp_path: Path, files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    save_language_model(tmp_path)
    asked: list[str] = []
    conditioner = DialectConditioner(81, load_ta_tok(files["ta_tok.pth"]), str(tmp_path))
    ids = conditioner.write("a red fox", 3)
    assert ids.shape == (1, 81) and int(ids.min()) >= 0 and int(ids.max()) < 32 and len(ids.unique()) > 3
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert torch.equal(conditioner.write("a red fox", 3), ids)
    assert torch.equal(torch.get_rng_state(), before)
    features = conditioner.condition(["a red fox"], [3]).features
    assert torch.equal(features, conditioner.from_ids(ids).features)
    with pytest.raises(ValueError, match="1 prompts need as many seeds, got none"):
        conditioner.condition(["a red fox"])
    tokenizer = conditioner._loaded[0]  # type: ignore[index]

    def remember(text: str, **options: Any) -> Any:
        asked.append(text)
        return original(text, **options)

    original = type(tokenizer).__call__.__get__(tokenizer)
    monkeypatch.setattr(type(tokenizer), "__call__", lambda self, text, **options: remember(text, **options))
    conditioner.write("a red fox", 3)
    assert asked == ["system You are a helpful assistant. user a red fox assistant <im_start><S2>"]


def test_every_image_has_a_condition_of_its_own_seed(tmp_path: Path, files: Any) -> None:
    """Features that are given are what the image is drawn under: those of its seed must give the same image."""
    save_language_model(tmp_path / "llm")
    engine = Engine.from_pretrained(convert(files, tmp_path / "llm", tmp_path / "tar"))
    seeds = [5, 6, 7, 5 + (1 << 32)]
    with torch.inference_mode():
        conditions = engine.family.condition(["fox"] * 4, seeds)
    different = {tuple(row.flatten().tolist()) for row in conditions.features}
    assert len(different) == 4
    greedy = SamplingParams(cfg_scale=2.0, temperature=0.0)
    for sampling in (SamplingParams(cfg_scale=2.0), greedy):
        drawn = engine.generate(["fox"] * 4, decoder=Serial(), sampling=sampling, seed=seeds).tokens
        given = engine.generate(["fox"] * 4, decoder=Serial(), sampling=sampling, seed=seeds, features=conditions)
        assert torch.equal(drawn, given.tokens)
        together = engine.generate("fox", num_images=3, decoder=Serial(), sampling=sampling, seed=5, batch_size=2)
        assert torch.equal(together.tokens, drawn[:3])
    # Greedy images differ by their conditions alone: under one condition the seed changes nothing.
    same = conditions[:1]
    one, other = (
        engine.generate("fox", decoder=Serial(), sampling=greedy, seed=seed, features=same).tokens for seed in (1, 2)
    )
    assert torch.equal(one, other) and torch.equal(one, drawn[:1]) and len({str(t.tolist()) for t in drawn}) > 1
    # A decoder that drafts on the small grid has the same condition there, and mixed company changes nothing.
    mulo = MuloSD(2, tau=1.5, radius=0, pool=1, upsampler="pixel")
    numbers = [engine.add_request("fox", decoder=d, seed=6, sampling=greedy) for d in (mulo, Serial())]
    made = {}
    while engine.busy:
        made |= {u.request: u.tokens for u in engine.step()}
    assert all(torch.equal(made[number], drawn[1]) for number in numbers)
    with torch.inference_mode():
        wanted = nll(engine.family, conditions, drawn)
    assert torch.allclose(engine.nll(["fox"] * 4, drawn, seeds), wanted, atol=1e-5)
    with pytest.raises(ValueError, match="need as many seeds, got none; give those that the images were drawn with"):
        engine.nll(["fox"] * 4, drawn)


def test_seeds_of_32_bits_stay_what_they_are() -> None:
    assert [folded(seed) for seed in (0, 7, 2**32 - 1)] == [0, 7, 2**32 - 1]
    assert len({folded(seed + (high << 32)) for seed in range(8) for high in (0, 1, 2, 2**31 - 1)}) == 32


def test_folders_that_name_a_seed_of_the_language_model_still_load(files: Any, tmp_path: Path) -> None:
    folder = convert(files, tmp_path / "llm", tmp_path / "tar")
    described = json.loads((folder / "family.json").read_text())
    assert "seed" not in described["conditioner"]
    described["conditioner"]["seed"] = 0
    (folder / "family.json").write_text(json.dumps(described))
    assert isinstance(Family.load(folder).conditioner, DialectConditioner)


def test_what_is_absent_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="give the folder of a copy, or precomputed features"):
        CaptionConditioner(6, 16, str(tmp_path)).condition(["fox"])
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ImportError, match=r"mulosd\[text\]"):
        pretrained_module.load_pretrained("x", "T5EncoderModel", torch.device("cpu"), torch.float32)
