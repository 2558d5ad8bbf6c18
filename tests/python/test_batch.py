"""`mulosd batch`: what is there is not drawn again, what fails is a row, and the manifest says how far it came."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from mulosd.cli.image_files import read_settings
from mulosd.engine.engine import Engine

Run = Callable[..., Result]
Fails = Callable[..., str]


def rows(name: str, folder: Path | str = "out") -> list[dict[str, Any]]:
    path = Path(folder) / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def manifest(folder: Path | str = "out") -> dict[str, Any]:
    found = json.loads((Path(folder) / "manifest.json").read_text())
    assert isinstance(found, dict)
    return found


def images(folder: Path | str = "out") -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*.png")}


LINES = [
    {"prompt": "red apple", "id": "first", "seed": 7},
    {"prompt": "blue pear", "output": "own/pear.png", "decoder": "serial"},
    {"prompt": "apple"},
    {"prompt": "apple"},
]


def jsonl(lines: list[Any], name: str = "list.jsonl") -> str:
    Path(name).write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return name


def csv(lines: list[dict[str, Any]]) -> str:
    names = ("id", "prompt", "seed", "decoder", "output")
    Path("list.csv").write_text(
        "\n".join(
            ",".join(str(line.get(n, "")) for n in names) for line in [dict(zip(names, names, strict=True)), *lines]
        )
    )
    return "list.csv"


def parquet(lines: list[dict[str, Any]]) -> str:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as pq

    # As pandas writes them: numbers of which some are missing are floats.
    columns = {n: [line.get(n) for line in lines] for n in ("id", "prompt", "decoder", "output")}
    seeds = pa.array([float(line.get("seed", "nan")) for line in lines])
    pq.write_table(pa.table({**columns, "seed": seeds}), "list.parquet")
    return "list.parquet"


@pytest.mark.parametrize("write", [jsonl, csv, parquet])
def test_every_form_of_a_list_gives_the_images_of_generate(run: Run, family: Path, write: Any) -> None:
    result = run("batch", write(LINES), "--out", "out", "--family", family)
    assert result.exit_code == 0, result.output
    made = images()
    assert {"images/first.png", "own/pear.png"} < made.keys() and len(made) == 3, "the same image twice is one"
    for row in rows("images.jsonl"):
        settings = read_settings(Path("out", row["file"]))
        assert settings == row["settings"]
        alone = ("--seed", settings["seed"], "--decoder", settings["decoder"], "--family", family)
        assert run("generate", settings["prompt"], *alone, "--output", "one.png").exit_code == 0
        assert Path("one.png").read_bytes() == made[row["file"]]
    counts = manifest()
    assert counts["complete"] is True
    assert [counts[n] for n in ("rows", "images", "found", "drawn", "failed")] == [4, 3, 0, 3, 0]


def test_a_second_call_draws_what_is_missing_alone(run: Run, family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = ("batch", jsonl(LINES), "--out", "out", "--family", family)
    assert run(*call).exit_code == 0
    first = images()
    asked: list[str] = []
    add = Engine.add_request

    def noted(self: Engine, prompt: str, **options: Any) -> int:
        asked.append(prompt)
        return add(self, prompt, **options)

    monkeypatch.setattr(Engine, "add_request", noted)
    assert run(*call).exit_code == 0 and asked == []
    Path("out/images/first.png").unlink()
    # An image whose row was lost with the process is found all the same; a row that was cut off says nothing.
    kept = rows("images.jsonl")[:1]
    Path("out/images.jsonl").write_text(json.dumps(kept[0]) + '\n{"file": "images/fir')
    assert run(*call).exit_code == 0 and asked == ["red apple"]
    assert images() == first
    assert [manifest()[n] for n in ("found", "drawn")] == [2, 1]
    # Lines in another order, more of them, and without what others say: names do not depend on the place in the list.
    asked.clear()
    assert run("batch", jsonl([{"prompt": "blue apple"}, *LINES[::-1]]), *call[2:]).exit_code == 0
    assert asked == ["blue apple"] and first.items() < images().items()
    asked.clear()
    assert run(*call, "--overwrite").exit_code == 0 and sorted(asked) == [
        "apple",
        "blue apple",
        "blue pear",
        "red apple",
    ]


def test_a_name_that_holds_another_image_is_told_before_anything_is_drawn(run: Run, family: Path) -> None:
    call = ("--out", "out", "--family", family)
    assert run("batch", jsonl(LINES), *call).exit_code == 0
    before = images()
    other = jsonl([{"prompt": "apple", "seed": 3}, {"prompt": "red apple", "id": "first", "seed": 8}])
    result = run("batch", other, *call)
    assert result.exit_code == 2 and "first.png exists already and was drawn with seed '7', not '8'" in result.stderr
    assert images() == before


BAD = [
    ({"prompt": "  "}, "is empty"),
    ({"prompt": "nonsense words"}, "no word that this family knows"),
    ({"prompt": "apple", "seed": -1}, "seed must be"),
    ({"prompt": "apple", "decoder": "serial:grid=5"}, "grid"),
    ({"prompt": "apple", "id": "../up"}, "id must be"),
    ({"prompt": "apple", "output": "../up.png"}, "leaves the folder"),
    ({"prompt": "apple", "output": "up.gif"}, "PNG, JPEG or WebP"),
    ({"prompt": "apple", "colour": "red"}, "'colour'"),
    ('{"prompt": "apple"', "no JSON"),
    ({"prompt": "pear", "id": "first", "seed": 9}, "line 1 names, and another image"),
]


def test_lines_that_cannot_be_are_rows_and_the_others_go_on(run: Run, family: Path) -> None:
    call = ("batch", jsonl([LINES[0], *(line for line, _ in BAD), LINES[2]]), "--out", "out", "--family", family)
    for drawn in (2, 0):
        result = run(*call)
        assert result.exit_code == 1, result.output
        found = rows("errors.jsonl")
        assert len(found) == len(BAD), "those of the latest call alone"
        by_place = {row["place"]: row["error"] for row in found}
        for number, (_, why) in enumerate(BAD, 2):
            assert why in by_place[f"list.jsonl line {number}"], number
        counts = manifest()
        assert [counts[n] for n in ("complete", "rows", "images", "drawn", "failed")] == [False, 12, 2, drawn, 10]
    assert len(images()) == 2 and not list(Path().glob("up*"))


def test_an_image_that_fails_is_a_row_and_drawn_by_the_next_call(
    run: Run, family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = ("batch", jsonl(LINES), "--out", "out", "--family", family)
    to_images = Engine.to_images

    def fail(self: Engine, tokens: Any) -> Any:
        if len(tokens) and not Path("failed").exists():
            Path("failed").touch()
            raise ZeroDivisionError("once")
        return to_images(self, tokens)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "to_images", fail)
        assert run(*call).exit_code == 1
    [error] = rows("errors.jsonl")
    assert "ZeroDivisionError: once" in error["error"] and error["file"] not in images()
    assert len(images()) == 2 and run(*call).exit_code == 0
    assert [manifest()[n] for n in ("complete", "found", "drawn")] == [True, 2, 1]
    assert rows("errors.jsonl") == []


def test_several_images_a_line_and_other_settings_share_a_folder(run: Run, family: Path) -> None:
    call = ("batch", jsonl([LINES[0], LINES[2]]), "--out", "out", "--family", family, "-n", 2)
    assert run(*call).exit_code == 0
    assert {"images/first-7.png", "images/first-8.png"} < images().keys() and len(images()) == 4
    again = run("batch", jsonl([LINES[2]]), *call[2:], "--sampling", "temperature=0.5")
    assert again.exit_code == 0 and len(images()) == 6, "what an image is made of is in its name"


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (("none.csv", "--out", "out"), "none.csv is not there"),
        (("list.jsonl", "--out", "no/where"), "there is no directory"),
        (("list.jsonl", "--out", "list.jsonl"), "is a file"),
        (("list.jsonl", "--out", "out", "--actors", "2"), "are for --ray"),
        (("empty.csv", "--out", "."), "has no prompts"),
        (("broken.parquet", "--out", "."), "broken.parquet is no Parquet file"),
        (("list.jsonl", "--out", ".", "--decoder", "nonsense"), "decoders must be chosen from"),
        (("list.jsonl", "--out", ".", "--size", "5"), "--size"),
    ],
)
def test_a_mistake_is_told_in_a_line(run: Run, family: Path, more: tuple[str, ...], part: str) -> None:
    jsonl(LINES)
    Path("empty.csv").write_text("prompt\n")
    Path("broken.parquet").write_text("nothing")
    result = run("batch", *more, "--family", family)
    assert result.exit_code == 2 and result.stderr.startswith("error: ") and part in result.stderr, result.output
    assert images(".") == {}


def test_parquet_is_read_by_generate_too(run: Run, family: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as pq

    pq.write_table(pa.table({"prompt": ["apple", "pear"], "seed": [5.0, float("nan")]}), "two.parquet")
    result = run("generate", "--prompts", "two.parquet", "--family", family, "--output", ".", "--seed", 2)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in Path().glob("*.png")) == ["01-apple-seed5.png", "02-pear-seed2.png"]
    result = run("generate", "--prompts", parquet(LINES), "--family", family, "--output", ".")
    assert result.exit_code == 2 and "'id'" in result.stderr, "which names images of batches alone"
