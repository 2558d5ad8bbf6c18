"""`mulosd generate`: lists of prompts, pipes, sizes, formats, sheets, and what is out of scope."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from mulosd.cli import app
from mulosd.cli.image_files import read_settings
from mulosd.cli.prompt_list import read_prompt_list

Run = Callable[..., Result]
Fails = Callable[..., str]


def states(path: Path | str) -> dict[str, str]:
    found = read_settings(Path(path))
    assert found is not None
    return found


def pixels(path: Path | str) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


TEXTS = {
    "with a byte order mark and the line ends of Windows": ("p.txt", "\ufeffa red apple\r\n\r\npear\r\n".encode()),
    "of Windows in UTF-16": ("p.txt", "a red apple\r\npear".encode("utf-16")),
    "as a table": ("p.csv", b"prompt\na red apple\n\npear\n"),
    "as objects": ("p.jsonl", b'{"prompt": "a red apple"}\n\n{"prompt": "pear"}\n'),
}


@pytest.mark.parametrize(("name", "data"), TEXTS.values(), ids=TEXTS)
def test_lists_of_prompts_are_read(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert [asked.prompt for asked in read_prompt_list(str(tmp_path / name))] == ["a red apple", "pear"]


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_a_table_settles_seed_decoder_and_output(tmp_path: Path, sign: str) -> None:
    rows = [
        ["Prompt", "seed", "decoder", "output"],
        ["a pear", "7", "serial", "x/a.jpg"],
        ['"a pear, red"', "", "", ""],
    ]
    (tmp_path / "p.csv").write_text("\n".join(sign.join(row) for row in rows))
    first, second = read_prompt_list(str(tmp_path / "p.csv"))
    assert (first.prompt, first.seed, first.decoder, first.output) == ("a pear", 7, "serial", Path("x/a.jpg"))
    assert (second.prompt, second.seed, second.decoder, second.output) == ("a pear, red", None, None, None)


WRONG = {
    "no such file": ("", None, ["p.txt", "not there"]),
    "no text": ("p.txt", b"apple\n\xff\xfa\n", ["p.txt", "line 2", "UTF-8"]),
    "zero byte": ("p.txt", b"apple\n\0\n", ["p.txt", "line 2", "NUL"]),
    "nothing": ("p.txt", b"\n\n", ["p.txt has no prompts"]),
    "another column": (
        "p.csv",
        b"prompt,steps\napple,3\n",
        ["p.csv line 1", "'steps'", "prompt, seed, decoder, output"],
    ),
    "no column of prompts": ("p.csv", b"apple\npear\n", ["p.csv line 1", "'prompt'"]),
    "comma in a prompt": ("p.csv", b"prompt,seed\na,b,3\n", ["p.csv line 2", "3 cells", "quote"]),
    "seed": ("p.csv", b"prompt,seed\napple,3\napple,x\n", ["p.csv line 3", "seed", "'x'"]),
    "no JSON": ("p.jsonl", b'{"prompt": "apple"}\n{prompt}\n', ["p.jsonl, line 2", "JSON"]),
    "no object": ("p.jsonl", b'["apple"]\n', ["p.jsonl line 1", "object"]),
    "number as a prompt": ("p.jsonl", b'{"prompt": 3}\n', ["p.jsonl line 1", "prompt must be a text"]),
    "half a sign": ("p.jsonl", b'{"prompt": "apple \\ud800"}\n', ["p.jsonl line 1", "UTF-8"]),
    "spreadsheet": ("p.xlsx", b"PK", ["p.xlsx", "CSV"]),
    "empty prompt": ("p.csv", b"prompt,seed\napple,1\n,2\n", ["p.csv line 3", "empty"]),
    "unknown word": ("p.txt", b"apple\nzeppelin\n", ["p.txt line 2", "zeppelin"]),
    "decoder": ("p.csv", b"prompt,decoder\napple,magic\n", ["p.csv line 2", "magic", "serial"]),
    "outside": ("p.csv", b"prompt,output\napple,../a.png\n", ["p.csv line 2", "../a.png", "leaves"]),
    "other format": ("p.csv", b"prompt,output\napple,a.gif\n", ["p.csv line 2", "a.gif", "WebP"]),
    "same output": ("p.csv", b"prompt,output\napple,a.png\npear,b/../a.png\n", ["a.png", "twice"]),
}


@pytest.mark.parametrize(("name", "data", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_list_is_refused_with_file_and_line(
    fails: Fails, family: Path, name: str, data: bytes | None, words: list[str]
) -> None:
    if data is not None:
        Path(name).write_bytes(data)
    message = fails("generate", "--prompts", name or "p.txt", "--family", family)
    for word in words:
        assert word in message


def test_a_list_is_drawn_as_it_says(run: Run, family: Path) -> None:
    Path("p.csv").write_text("prompt,seed,decoder,output\napple,7,serial,x/a.webp\npear,,,\n")
    result = run("generate", "red pear", "--prompts", "p.csv", "--family", family, "--seed", 3, "--output", "d")
    assert result.exit_code == 0, result.output
    assert sorted(str(p) for p in Path("d").rglob("*.*")) == [
        "d/01-red-pear-seed3.png",
        "d/03-pear-seed3.png",
        "d/x/a.webp",
    ]
    assert (states("d/x/a.webp")["seed"], states("d/x/a.webp")["decoder"]) == ("7", "serial:grid=8")
    again = run("generate", "red pear", "--prompts", "p.csv", "--family", family, "--seed", 3, "--output", "d")
    assert "3 of 3 there already" in again.stdout


@pytest.mark.parametrize("how", [["--prompts", "-"], ["-"]], ids=" ".join)
@pytest.mark.parametrize(
    "data", ["apple\npear\n", '{"prompt": "apple"}\n{"prompt": "pear"}\n'], ids=["text", "objects"]
)
def test_prompts_come_from_standard_input(run: Run, family: Path, how: list[str], data: str) -> None:
    arguments = ["generate", *how, "--family", str(family), "--decoder", "serial", "--output", "d"]
    result = CliRunner().invoke(app, arguments, input=data)
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in Path("d").iterdir()) == ["01-apple-seed0.png", "02-pear-seed0.png"]


def test_an_image_on_standard_output_is_all_that_goes_there(family: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mulosd", "generate", "red zeppelin", "--family", str(family), "--output", "-"]
    done = subprocess.run([*command, "--seed", "random"], capture_output=True, cwd=tmp_path, timeout=150)
    assert done.returncode == 0, done.stderr
    with Image.open(BytesIO(done.stdout)) as image:
        image.load()
        assert image.text["prompt"] == "red zeppelin"  # type: ignore[attr-defined]
        seed = image.text["seed"]  # type: ignore[attr-defined]
    told = done.stderr.decode()
    assert "zeppelin" in told and f"--seed {seed}, drawn at random" in told
    assert list(tmp_path.iterdir()) == []


def test_standard_output_takes_one_image_and_no_sheet(fails: Fails, family: Path) -> None:
    assert "one PNG" in fails("generate", "apple", "-n", 2, "--family", family, "--output", "-")
    assert "--sheet" in fails("generate", "apple", "--family", family, "--output", "-", "--sheet", "s.png")
    assert "--stats -" in fails("generate", "apple", "--family", family, "--stats", "-")


def test_a_random_seed_is_told_stored_and_draws_the_image_again(run: Run, family: Path) -> None:
    call = ("generate", "apple", "--family", family, "--decoder", "serial", "--output")
    first = run(*call, "a.png", "--seed", "random")
    run(*call, "c.png", "--seed", "random")
    seed = states("a.png")["seed"]
    assert f"--seed {seed}, drawn at random" in first.stdout
    assert states("c.png")["seed"] != seed
    run(*call, "b.png", "--seed", seed)
    assert np.array_equal(pixels("a.png"), pixels("b.png"))


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "webp"])
def test_other_formats_remember_the_same(run: Run, family: Path, suffix: str) -> None:
    call = ("generate", 'apple "猫" é', "--family", family, "--decoder", "serial", "--output")
    for name in ("a.png", f"a.{suffix}"):
        result = run(*call, name)
        assert result.exit_code == 0, result.output
    assert states(f"a.{suffix}") == states("a.png")
    assert states("a.png")["prompt"] == 'apple "猫" é'
    difference = np.abs(pixels("a.png").astype(int) - pixels(f"a.{suffix}"))
    assert difference.max() == 0 if suffix == "webp" else difference.mean() < 12
    with Image.open(f"a.{suffix}") as image:
        assert image.format == ("WEBP" if suffix == "webp" else "JPEG")


@pytest.mark.parametrize("decoder", ["serial", "zipar:window=2", "jacobi", "eagle"])
@pytest.mark.parametrize("size", [4, 8, 16])
def test_any_size_of_the_family(run: Run, family: Path, decoder: str, size: int) -> None:
    result = run("generate", "apple", "--family", family, "--decoder", decoder, "--size", size, "--output", "a.png")
    assert result.exit_code == 0, result.output
    assert pixels("a.png").shape == (size, size, 3)
    assert f"grid={size // 2}" in states("a.png")["decoder"]


def test_a_size_that_cannot_be_says_what_can(fails: Fails, run: Run, family: Path) -> None:
    call = ("generate", "apple", "--family", family, "--output", "a.png", "--size")
    assert "4, 8, 16 px" in fails(*call, 12)
    told = fails(*call, 8)
    assert "'mulo' draws 16 px alone" in told and "--decoder serial or zipar" in told
    assert "give one of them" in fails(*call, 8, "--decoder", "serial:grid=8")
    assert run(*call, 16).exit_code == 0


def test_a_sheet_shows_every_image_of_the_call(run: Run, family: Path) -> None:
    call = ("generate", "apple", "-n", 3, "--family", family, "--decoder", "serial", "--output", "d")
    assert run(*call).exit_code == 0
    result = run(*call, "--sheet", "d/sheet.png")
    assert result.exit_code == 0 and "3 of 3 there already" in result.stdout
    sheet = pixels("d/sheet.png")
    assert sheet.shape[1] > 3 * 128
    third = sheet[6 : 6 + 128, 6 + 2 * 134 : 6 + 2 * 134 + 128]
    image = Image.open("d/apple-seed2.png").resize((128, 128), Image.Resampling.LANCZOS)
    assert np.array_equal(third, np.asarray(image))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--negative-prompt", "blurry"], ["no negative prompts", "cfg_scale"]),
        (["--negative_prompt=blurry"], ["no negative prompts"]),
        (["--lora", "x.safetensors"], ["LoRA", "mulosd train"]),
        (["--image", "in.png"], ["image-to-image"]),
        (["--steps", "30"], ["no diffusion steps"]),
        (["--width", "512"], ["--size"]),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") else "",
)
def test_what_is_out_of_scope_says_so(fails: Fails, family: Path, option: list[str], words: list[str]) -> None:
    told = fails("generate", "apple", "--family", family, *option)
    assert all(word in told for word in words)


def test_a_file_of_prompts_after_an_at_sign_names_the_option(fails: Fails, family: Path) -> None:
    Path("p.txt").write_text("apple\n")
    assert "--prompts p.txt reads" in fails("generate", "@p.txt", "--family", family)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("aple", ["no word that this family knows", "'apple'"]),
        ("два перса", ["no word that this family knows", "mulosd info"]),
        ("猫", ["no word that this family knows", "such as"]),
        ("🐱", ["holds no word", "such as"]),
        ("and on a", ["only filler words"]),
    ],
)
def test_a_prompt_of_which_nothing_is_known_is_an_error(
    fails: Fails, family: Path, prompt: str, words: list[str]
) -> None:
    told = fails("generate", prompt, "--family", family)
    assert all(word in told for word in words)


def test_a_prompt_that_is_partly_known_is_drawn_with_a_warning(run: Run, family: Path) -> None:
    result = run("generate", "red aple", "--family", family, "--output", "d", "--stats", "s.json")
    assert result.exit_code == 0
    assert "near: 'apple'" in " ".join(result.stderr.split())
    assert json.loads(Path("s.json").read_text())["warnings"]
