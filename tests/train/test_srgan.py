"""A family's own super-resolution network: what it is before training, what it learns, and its way into a family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from mulosd.cli import app
from mulosd.engine.decoding import DraftOnly, MuloSD
from mulosd.engine.engine import Engine
from mulosd.engine.family import Family
from mulosd.engine.models.srgan import SuperResolver, SuperResolverConfig
from mulosd.engine.models.tokenizer import Tokenizer, TokenizerConfig
from mulosd.engine.random_family import random_family
from mulosd.engine.upsampling import upsample
from mulosd.measure.upsamplers import fitted
from mulosd.train.distill import with_own_drafter
from mulosd.train.loop import LoopConfig, train
from mulosd.train.srgan import SuperResolverTask

from ..tiny_training import noise_pictures, tiny_training

CPU = torch.device("cpu")


class Stripes:
    """Pictures of one-pixel stripes on a gradient: what half the size does not show."""

    def captioned(self, rng: np.random.Generator, sizes: tuple[int, ...]) -> tuple[str, list[NDArray[np.uint8]]]:
        level = rng.integers(60, 190, size=3)
        side = max(sizes)
        picture = (
            np.broadcast_to(level, (side, side, 3)).astype(np.int64) + np.where(np.arange(side) % 2, 30, -30)[:, None]
        )
        image = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
        return "", [np.asarray(image.resize((s, s), Image.Resampling.BOX)) for s in sizes]

    def image(self, rng: np.random.Generator, size: int, crop: int) -> NDArray[np.uint8]:
        return self.captioned(rng, (size,))[1][0]


class Plain(Tokenizer):
    """A tokenizer that shows a picture as it is: its tokens are not looked at."""

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        self.seen = image
        return torch.zeros(image.shape[0], image.shape[2] // 2, image.shape[3] // 2, dtype=torch.int64)

    def decode(self, indices: torch.Tensor) -> torch.Tensor:
        return self.seen


def plain() -> Plain:
    return Plain(TokenizerConfig(12, 4, channels=(8,), decoder_blocks=1))


def test_an_untrained_network_is_cubic_interpolation() -> None:
    image = torch.rand(2, 3, 6, 8) * 1.4 - 0.7
    network = SuperResolver(SuperResolverConfig(8, 2))
    cubic = F.interpolate(image, scale_factor=2, mode="bicubic", align_corners=False)
    assert torch.equal(network.enlarge(image, 2), cubic.clamp(-1, 1))
    twice = F.interpolate(cubic.clamp(-1, 1), scale_factor=2, mode="bicubic", align_corners=False)
    assert torch.equal(network.enlarge(image, 4), twice.clamp(-1, 1))
    for ratio in (1, 3, 6):
        with pytest.raises(ValueError, match=f"powers of two, not by {ratio}"):
            network.enlarge(image, ratio)


def test_pairs_are_the_same_window_of_the_same_picture() -> None:
    class Ramp(Stripes):
        def captioned(self, rng: np.random.Generator, sizes: tuple[int, ...]) -> tuple[str, list[NDArray[np.uint8]]]:
            side = max(sizes)
            at = np.arange(side) // 2
            picture = np.stack(np.broadcast_arrays(at[:, None] * 4, at[None] * 4, rng.integers(256)), -1)
            return "", [picture[:: side // s, :: side // s].astype(np.uint8) for s in sizes]

    task = SuperResolverTask(
        SuperResolverConfig(4, 1), plain(), Ramp(), sizes={32: 1.0}, batch=16, crop=12, adversarial=0.0
    )
    seen: list[torch.Tensor] = []
    task.module.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    loss, figures = task.loss(np.random.default_rng(0), 0, CPU)
    small = seen[0]
    assert small.shape == (16, 3, 6, 6)
    # Every pixel of the small picture is two by two of the large one, so repeated it is the large one itself.
    repeated = F.interpolate(small, scale_factor=2, mode="nearest")
    cubic = F.interpolate(small, scale_factor=2, mode="bicubic", align_corners=False)
    assert float(loss.detach()) == pytest.approx(float((cubic - repeated).abs().mean()), rel=1e-5)
    assert "psnr32" in figures and "judged" not in figures
    rows = small[:, 0].diff(dim=1)
    columns = small[:, 1].diff(dim=2)
    assert (rows > 0).all() and ((columns > 0).all(dim=(1, 2)) | (columns < 0).all(dim=(1, 2))).all()
    assert {bool(c) for c in (columns[:, 0, 0] > 0)} == {True, False}  # some are mirrored
    assert len({float(x) for x in small[:, 0, 0, 0]}) > 3  # windows differ


@pytest.mark.parametrize(("adversarial", "shown"), [(0.0, False), (0.5, True)])
def test_a_discriminator_asks_for_texture_that_cannot_be_known(tmp_path: Path, adversarial: float, shown: bool) -> None:
    class Either(Stripes):
        """Stripes light or dark first: the small picture does not tell, so the absolute error is least without any."""

        def captioned(self, rng: np.random.Generator, sizes: tuple[int, ...]) -> tuple[str, list[NDArray[np.uint8]]]:
            first, pictures = rng.random() < 0.5, super().captioned(rng, sizes)[1]
            return "", [p if first else p[::-1] for p in pictures]

    task = SuperResolverTask(
        SuperResolverConfig(8, 1), plain(), Either(), sizes={32: 1.0}, batch=4, adversarial=adversarial, start=20
    )
    loop = LoopConfig(150, lr=3e-3, warmup=5, decay=50, ema=0.9, precision="fp32", threads=1)
    task.net.load_state_dict(train(task, loop, tmp_path, seed=0, name="srgan"))
    small = torch.full((1, 3, 16, 16), 0.1)
    with torch.inference_mode():
        contrast = float(task.net.enlarge(small, 2)[..., 4:-4, 4:-4].diff(dim=2).abs().mean())
    assert contrast > 0.03 if shown else contrast < 0.003


def test_a_resumed_run_goes_on_with_the_same_critic(tmp_path: Path) -> None:
    def task() -> SuperResolverTask:
        torch.manual_seed(0)
        return SuperResolverTask(
            SuperResolverConfig(4, 1), plain(), Stripes(), sizes={16: 1.0, 32: 3.0}, batch=2, adversarial=0.5, start=1
        )

    def loop(steps: int) -> LoopConfig:
        return LoopConfig(steps, lr=1e-3, warmup=1, decay=0, ema=0.5, save_every=3, precision="fp32", threads=1)

    through = train(task(), loop(6), tmp_path / "a", seed=1, name="srgan")
    train(task(), loop(3), tmp_path / "b", seed=1, name="srgan")
    resumed = train(task(), loop(6), tmp_path / "b", seed=1, name="srgan")
    assert all(torch.equal(resumed[k], v) for k, v in through.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": {}}, "multiples of 4 px"),
        ({"sizes": {30: 1.0}}, "multiples of 4 px"),
        ({"crop": 5}, "even number"),
        ({"batch": 0}, "at least 1"),
    ],
)
def test_impossible_settings_are_told(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SuperResolverTask(SuperResolverConfig(4, 1), plain(), Stripes(), **{"sizes": {32: 1.0}, **change})
    with pytest.raises(ValueError, match="at least 1"):
        SuperResolverConfig(0)


@pytest.fixture
def family() -> Family:
    torch.manual_seed(3)
    network = SuperResolver(SuperResolverConfig(6, 1))
    for parameter in network.parameters():
        parameter.data.normal_(std=0.3)
    made = random_family()
    made.srgan = network.eval()
    return made


@pytest.mark.parametrize("scale", [2, 4])
def test_drafts_pass_through_pixels(family: Family, scale: int) -> None:
    engine = Engine(family)
    tokens = engine.generate("apple", decoder=DraftOnly(scale=scale, upsampler="srgan"), seed=4).tokens
    plainly = engine.generate("apple", decoder=DraftOnly(scale=scale, upsampler="pixel"), seed=4).tokens
    assert tokens.shape == (1, 8, 8) and not torch.equal(tokens, plainly)
    draft = torch.arange(64 // scale**2).view(1, 8 // scale, 8 // scale) % 24
    image = family.tokenizer.decode(draft).clamp(-1, 1)
    for _ in range(scale // 2):
        image = family.super_resolver(image).clamp(-1, 1)
    assert torch.equal(upsample(family, draft, 8, "srgan"), family.tokenizer.encode(image))


def test_it_is_saved_with_the_family(family: Family, tmp_path: Path) -> None:
    again = Family.load(family.save(tmp_path / "saved"))
    assert again.super_resolver.config == family.super_resolver.config
    for key, value in family.super_resolver.state_dict().items():
        assert torch.equal(again.super_resolver.state_dict()[key], value.half().float())
    assert again.parameters()["srgan"] == sum(p.numel() for p in family.super_resolver.parameters())


def test_families_made_of_a_family_keep_it(family: Family) -> None:
    assert with_own_drafter(family, 4).srgan is family.srgan
    assert fitted(Engine(family), {(4, 8): family.resamplers[4, 8]}).family.srgan is family.srgan


def test_a_family_without_one_says_so_before_any_work() -> None:
    engine = Engine(random_family())
    for decoder in (DraftOnly(2, "srgan"), MuloSD(2, 0.1, 1, 1, "srgan")):
        with pytest.raises(ValueError, match=r"no super-resolution network of its own.*mulosd train srgan"):
            engine.generate("apple", decoder=decoder)


def test_the_stage_trains_and_is_exported(tmp_path: Path) -> None:
    loop = {"steps": 2, "lr": 1e-3, "warmup": 1, "decay": 1, "ema": 0.5, "precision": "fp32", "threads": 1}
    values = tiny_training(
        noise_pictures(tmp_path / "pictures", 12),
        loop,
        upsampler={"pairs": [[4, 8]], "model": {"channels": 8, "blocks": 1}, "batch": 2, "pool": 6},
        srgan={"model": {"channels": 4, "blocks": 1}, "sizes": {16: 1.0}, "batch": 2, "pool": 4},
    )
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(values, sort_keys=False))

    def call(*words: str) -> None:
        result = CliRunner().invoke(app, ["train", *words, "--config", str(config), "--run", str(tmp_path / "run")])
        assert result.exit_code == 0, result.output

    call("all")
    call("export", "--output", str(tmp_path / "family"))
    call("export", "--output", str(tmp_path / "half"), "--half-encoder")
    for name, kept in (("family", torch.float32), ("half", torch.float16)):
        stored = load_file(tmp_path / name / "tokenizer.safetensors")
        assert {v.dtype for k, v in stored.items() if k.startswith("encoder.")} == {kept}
        assert stored["codebook"].dtype == torch.float32
    family = Family.load(tmp_path / "family")
    assert family.super_resolver.config == SuperResolverConfig(4, 1)
    tokens = Engine(family).generate("a", decoder=DraftOnly(2, "srgan")).tokens
    assert tokens.shape == (1, 8, 8)
