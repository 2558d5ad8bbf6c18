"""`mulosd generate`: files, names, metadata, statistics, warnings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import Result

import mulosd
from mulosd.engine.decoding import Decoder, parse

Run = Callable[..., Result]


def pixels(path: Path | str) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_one_file(run: Run, family: Path) -> None:
    result = run("generate", "a red apple", "--family", family, "--seed", 5, "--output", "apple.png")
    assert result.exit_code == 0, result.output
    assert [p.name for p in Path().iterdir()] == ["apple.png"]
    assert "apple.png" in result.stdout
    assert "draft" in result.stdout
    assert " s" in result.stdout
    with Image.open("apple.png") as image:
        assert image.format == "PNG"
        assert image.size == (16, 16)


def test_image_is_that_of_the_api(run: Run, family: Path) -> None:
    text = "mulo:scale=2:tau=0.1"
    run("generate", "pear", "--family", family, "--seed", 3, "--decoder", text, "--output", "pear.png")
    engine = mulosd.Engine.from_pretrained(family)
    made = engine.generate("pear", decoder=mulosd.MuloSD(scale=2, tau=0.1), seed=3).images[0]
    assert np.array_equal(pixels("pear.png"), np.asarray(made))


@pytest.mark.parametrize(
    "decoder", ["mulo:scale=2:tau=0.1:radius=0:pool=2", "mulo", "zipar:window=2", "eagle:coupled=true"]
)
def test_metadata_is_what_the_command_takes(run: Run, family: Path, decoder: str) -> None:
    options = ("--decoder", decoder, "--sampling", "temperature=0.7:top_k=5")
    assert run("generate", "blue pear", "--family", family, "--seed", 9, *options, "--output", "a.png").exit_code == 0
    text = Image.open("a.png").text  # type: ignore[attr-defined]
    assert (text["prompt"], text["seed"], text["family"]) == ("blue pear", "9", "random")
    assert (text["dtype"], text["version"]) == ("float32", mulosd.__version__)
    assert parse(text["decoder"]) == parse(decoder).resolve(mulosd.Engine.from_pretrained(family).family)
    assert text["sampling"].startswith("cfg_scale=1.0:temperature=0.7:top_k=5:top_p=1.0:cfg_interval=-1")
    same = ("--decoder", text["decoder"], "--sampling", text["sampling"], "--seed", text["seed"])
    again = run("generate", text["prompt"], "--family", family, *same, "--output", "b.png", "--stats", "b.json")
    assert again.exit_code == 0, again.output
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    assert Image.open("b.png").text == text  # type: ignore[attr-defined]
    [image] = json.loads(Path("b.json").read_text())["images"]
    assert (image["spelling"], image["sampling"]) == (text["decoder"], text["sampling"])
    assert image["decoder"] == decoder.partition(":")[0]


def test_prompt_beyond_latin_survives_the_metadata(run: Run, family: Path) -> None:
    prompt = "a red apple 🍎 для тебя"
    assert run("generate", prompt, "--family", family, "--output", "a.png").exit_code == 0
    assert Image.open("a.png").text["prompt"] == prompt  # type: ignore[attr-defined]


def test_several_prompts_and_images(run: Run, family: Path) -> None:
    result = run("generate", "A red apple!", "pear", "--family", family, "-n", 2, "--seed", 7, "--output", "out")
    assert result.exit_code == 0, result.output
    names = ["01-a-red-apple-seed7.png", "01-a-red-apple-seed8.png", "02-pear-seed7.png", "02-pear-seed8.png"]
    assert sorted(p.name for p in Path("out").iterdir()) == names
    alone = run("generate", "pear", "--family", family, "--seed", 8, "--output", "alone.png")
    assert alone.exit_code == 0
    assert np.array_equal(pixels("alone.png"), pixels("out/02-pear-seed8.png"))


def test_default_output_is_the_current_directory(run: Run, family: Path) -> None:
    run("generate", "pear", "--family", family)
    assert [p.name for p in Path().iterdir()] == ["pear-seed0.png"]


def test_file_is_replaced_as_a_whole(run: Run, family: Path) -> None:
    Path("a.png").write_bytes(b"old")
    assert run("generate", "pear", "--family", family, "--output", "a.png").exit_code == 0
    assert pixels("a.png").shape == (16, 16, 3)


def test_stats_beside_the_images(run: Run, family: Path) -> None:
    assert run("generate", "pear", "--family", family, "--output", "new", "--stats", "new/s.json").exit_code == 0
    assert sorted(p.name for p in Path("new").iterdir()) == ["pear-seed0.png", "s.json"]


@pytest.mark.parametrize("decoder", ["mulo", "serial", "draft-only"])
def test_stats_file(run: Run, family: Path, decoder: str) -> None:
    run("generate", "apple", "-n", 2, "--family", family, "--decoder", decoder, "--output", "o", "--stats", "s.json")
    stats = json.loads(Path("s.json").read_text())
    assert stats["version"] == mulosd.__version__
    assert [i["seed"] for i in stats["images"]] == [0, 1]
    for image in stats["images"]:
        assert Path(image["file"]).is_file()
        assert image["decoder"] == decoder
        assert image["prompt"] == "apple"
        assert image["seconds"]["total"] > 0
        assert sum(image["forwards"].values()) > 0
        assert (image["rejection"] is not None) == (decoder == "mulo")


def test_unknown_words_are_named(run: Run, family: Path) -> None:
    result = run("generate", "an apple and a zeppelin", "--family", family, "--output", "a.png", "--stats", "s.json")
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: ")
    assert "'zeppelin'" in result.stderr
    assert "'apple'" not in result.stderr
    assert "zeppelin" in json.loads(Path("s.json").read_text())["warnings"][0]


@pytest.mark.parametrize("moment", ["image", "stats"])
def test_interrupted_write_leaves_nothing(run: Run, family: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    if moment == "image":

        def save(self: Image.Image, file: object, **options: object) -> None:
            file.write(b"half")  # type: ignore[attr-defined]
            raise KeyboardInterrupt

        monkeypatch.setattr(Image.Image, "save", save)
    else:

        def dumps(values: object, **options: object) -> str:
            if "indent" in options:
                raise OSError(28, "No space left on device")
            return "{}"

        monkeypatch.setattr("mulosd.engine.atomic.json.dumps", dumps)
    Path("a.png").write_bytes(b"old")
    result = run("generate", "pear", "--family", family, "--output", "a.png", "--stats", "s.json")
    assert result.exit_code != 0
    assert [p.name for p in Path().iterdir()] == ["a.png"]
    if moment == "image":
        assert Path("a.png").read_bytes() == b"old"
    else:
        assert "No space left" in result.stderr


@pytest.mark.parametrize(
    ("text", "decoder"),
    [
        ("zipar:window=2", mulosd.ZipAR(2)),
        ("jacobi:window=3", mulosd.Jacobi(3)),
        (
            "eagle:depth=2:top_k=3:total=5:lantern_k=4:delta=0.1",
            mulosd.Eagle(2, 3, 5, relaxed=mulosd.Lantern(4, 0.1)),
        ),
        ("eagle:coupled=true", mulosd.Eagle(coupled=True)),
        ("draft-only:draft_window=1", mulosd.DraftOnly(draft_window=1)),
        (
            "mulo:window=2:draft_window=1:cascade=true:tau=0.1",
            mulosd.MuloSD.from_settings({"tau": 0.1, "window": 2, "draft_window": 1, "cascade": True}),
        ),
    ],
    ids=str,
)
def test_text_of_each_decoder(run: Run, family: Path, text: str, decoder: Decoder) -> None:
    result = run("generate", "pear", "--family", family, "--seed", 3, "--decoder", text, "--output", "pear.png")
    assert result.exit_code == 0, result.output
    made = mulosd.Engine.from_pretrained(family).generate("pear", decoder=decoder, seed=3)
    assert np.array_equal(pixels("pear.png"), np.asarray(made.images[0]))


def test_a_family_without_a_drafter_says_what_makes_one(run: Run) -> None:
    result = run("generate", "a cat", "--family", "emoji", "--decoder", "eagle")
    told = " ".join(result.stderr.split())
    assert result.exit_code == 2 and "mulosd train eagle" in told and "mulosd train attach" in told
