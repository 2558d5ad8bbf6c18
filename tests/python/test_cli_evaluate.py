"""`mulosd evaluate` from its options to a page that stands alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import Result

from mulosd.engine.decoding import Serial
from mulosd.engine.engine import Engine
from mulosd.measure import judge as judge_module
from mulosd.measure import page as page_module

Run = Callable[..., Result]
Fails = Callable[..., str]

PROMPTS = ("<b>red</b> apple", "blue pear", "red pear", "blue apple")
VOID = {"meta", "img", "input", "br"}
CALL = (
    "evaluate", "--prompts", "prompts.txt", "--decoder", "serial,draft-only:scale=2", "--decoder", "mulo:scale=2",
    "--reference", "real", "--real", "8", "--report", "out", "--show", "3",
)  # fmt: skip


class Page(HTMLParser):
    """Elements with their attributes; checks that every element is closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


class CheapFeatures:
    """Pixels in place of a network, to keep the test small."""

    def __init__(self, device: str = "cpu") -> None:
        pass

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return images[:, ::4, ::4].reshape(len(images), -1).astype(np.float32) / 255


@pytest.fixture
def call(run: Run, family: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `CALL` with further options in a folder with prompts and real pictures."""
    monkeypatch.setattr(judge_module, "Lite0Features", CheapFeatures)
    Path("prompts.txt").write_text("\n".join(PROMPTS))
    Path("real").mkdir()
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(f"real/{i}.png")
    return lambda *options: run(*CALL, "--family", family, *options)


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts are most of the time of a small evaluation."""
    monkeypatch.setattr(page_module, "chart", lambda *_: "<svg></svg>")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Decoder and seed of each picture that the engine draws from now on."""
    found: list[tuple[str, int]] = []
    generate = Engine.generate

    def counted(self: Engine, *arguments: Any, **options: Any) -> Any:
        result = generate(self, *arguments, **options)
        found.extend((stats.decoder, stats.seed) for stats in result.stats)
        return result

    monkeypatch.setattr(Engine, "generate", counted)
    return found


def test_a_report_from_beginning_to_end(call: Callable[..., Result], family: Path) -> None:
    result = call()
    assert result.exit_code == 0, result.output
    assert "report.html" in result.stdout
    report = json.loads(Path("out/report.json").read_text())
    assert report["prompts"] == list(PROMPTS)
    assert report["reference"]["real"] == 8
    assert report["reference"]["perfect"]["images"] == 4
    serial, draft, mulo = report["rows"]
    assert [row["label"] for row in report["rows"]] == ["serial", "draft-only:scale=2", "mulo:scale=2"]
    assert mulo["settings"]["tau"] == 0.05, "what is left open comes from the family, without a sweep"
    for row in report["rows"]:
        assert row["seconds_per_image"]["runs"] == 8
        for found in (row["kid"], row["frechet"], row["diversity"]["overall"], row["diversity"]["within"]):
            assert found["ci95"][0] <= found["value"] <= found["ci95"][1]
        assert (row["frechet"]["real"], row["frechet"]["made"]) == (8, 8)
        assert row["accuracy"] is None
    assert serial["difference"] is None
    assert serial["speedup"]["value"] == 1
    assert mulo["difference"]["nll"]["value"] == pytest.approx(mulo["nll"] - serial["nll"])
    assert draft["difference"]["kid"]["value"] == pytest.approx(draft["kid"]["value"] - serial["kid"]["value"])
    assert serial["seam"] is draft["seam"] is None
    assert mulo["seam"]["borders"] > 0
    notes = " ".join(report["notes"])
    assert "accuracy is null" in notes
    assert "biased upwards" in notes

    # The pictures are those of the engine for the same prompts and seeds.
    again = Engine.from_pretrained(family).generate(PROMPTS[1], decoder=Serial(), seed=2, num_images=2)
    for seed, image in zip((2, 3), again.images, strict=True):
        assert np.array_equal(Image.open(f"out/images/serial/{seed:05d}-seed{seed}.png"), image)
    assert len(list(Path("out/images/mulo_scale=2").glob("*.png"))) == 8
    assert not list(Path("out").rglob("*.part"))

    page = Page(Path("out/report.html").read_text())
    images = page.of("img")
    assert len(images) == 3 * 3 + 8, "three prompts of three decoders, and eight real pictures"
    assert all(image["src"].startswith("data:image/webp;base64,") and image["alt"] for image in images)
    places = [a[key] for _, a in page.elements for key in ("src", "href", "xlink:href", "data", "action") if key in a]
    assert all(place.startswith(("data:", "#")) for place in places)
    assert not {"link", "script", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert "url(http" not in Path("out/report.html").read_text()
    assert "@import" not in page.words
    charts = [svg for svg in page.of("svg") if svg.get("role") == "img"]
    assert len(charts) == 7, "all measures but those of a grader"
    outlines = [svg for svg in page.of("svg") if svg.get("aria-hidden")]
    assert 1 <= len(outlines) <= 3, "mulo's pictures alone have outlines"
    assert "red pear" in page.words
    assert "KID-Lite0" in page.words
    assert "Not measured here: Right, %, Scenes right, %." in page.words
    assert "<b>red</b> apple" in page.words, "a prompt is text"
    assert page.of("b") == []


def test_an_interrupted_call_goes_on(
    call: Callable[..., Result], no_charts: None, drawn: list[tuple[str, int]]
) -> None:
    assert call().exit_code == 0
    whole, before = json.loads(Path("out/report.json").read_text()), list(drawn)
    # Three decoders warm up with the first seed, then take turns.
    assert before[3:6] == [("serial", 0), ("draft-only", 0), ("mulo", 0)]
    assert len(before) == 3 + 3 * 8
    journal = Path("out/pictures.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-2]) + lines[-2][:40])
    for name in ("report.json", "report.html"):
        Path("out", name).unlink()
    drawn.clear()
    assert call().exit_code == 0
    assert drawn[3:] == before[-2:], "only what was cut off"
    drawn.clear()
    assert call().exit_code == 0
    assert drawn == []
    again = json.loads(Path("out/report.json").read_text())
    for row, other in zip(whole["rows"], again["rows"], strict=True):
        for key in ("nll", "kid", "frechet", "diversity", "seam", "coverage"):
            assert row[key] == other[key], key


def test_another_call_is_refused_and_overwriting_starts_anew(
    call: Callable[..., Result], no_charts: None, drawn: list[tuple[str, int]]
) -> None:
    assert call().exit_code == 0
    Path("out/mine.txt").write_text("kept")
    refused = call("--seed", 5)
    assert refused.exit_code == 2
    assert "differs in seed" in refused.stderr
    assert "--overwrite" in refused.stderr
    drawn.clear()
    assert call("--seed", 5, "--overwrite").exit_code == 0
    assert len(drawn) == 3 + 3 * 8
    assert {p.name for p in Path("out/images/serial").iterdir()} == {f"{n:05d}-seed{n + 5}.png" for n in range(8)}
    assert Path("out/mine.txt").read_text() == "kept"


def test_without_anything_to_compare_with_it_says_so(run: Run, family: Path, no_charts: None) -> None:
    Path("prompts.txt").write_text("red apple\n")
    options = ("--prompts", "prompts.txt", "--decoder", "serial", "-n", 1, "--report", "out")
    result = run("evaluate", "--family", family, *options)
    assert result.exit_code == 0, result.output
    assert "accuracy and kid are null" in " ".join(result.stdout.split())
    page = Page(Path("out/report.html").read_text())
    assert len(page.of("img")) == 1
    assert "Not measured here" in page.words


def test_a_protocol_writes_its_layout_and_says_how_to_score(run: Run, family: Path) -> None:
    lines = [{"tag": "colors", "include": [], "prompt": prompt} for prompt in ("red apple", "blue pear")]
    Path("metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    options = ("--protocol", "geneval", "--prompts", "metadata.jsonl", "--decoder", "serial,mulo", "--limit", 1)
    result = run("evaluate", "--family", family, *options, "--report", "out", "--batch-size", 4)
    assert result.exit_code == 0, result.output
    assert "evaluate_images.py 'out/images/mulo'" in result.stdout
    for name in ("serial", "mulo"):
        files = [str(p.relative_to(f"out/images/{name}")) for p in Path("out/images", name).rglob("*.*")]
        assert sorted(files) == ["00000/metadata.jsonl", *(f"00000/samples/0000{n}.png" for n in range(4))]
    assert json.loads(Path("out/report.json").read_text())["rows"][1]["spec"].startswith("mulo:scale=4")


MISTAKES = [
    (["--decoder", "medusa"], "chosen from serial"),
    (["--decoder", "serial,serial"], "the same one"),
    (["--decoder", "mulo:scale=3"], "scale 3"),
    (["--prompts", "0"], "--prompts"),
    (["--prompts", "none.txt"], "none.txt"),
    (["--prompts", "4"], "give a file of prompts (--prompts-file FILE"),
    (["--num-images", "0"], "--num-images"),
    (["--batch-size", "0"], "--batch-size"),
    (["--show", "-1"], "--show"),
    (["--limit", "4"], "--protocol"),
    (["--real", "3"], "at least 4"),
    (["--reference", "none"], "no such folder"),
    (["--reference", "empty"], "holds 0 images"),
    (["--report", "no/such"], "mkdir"),
    (["--report", "prompts.txt"], "is a file"),
    (["--report", "full"], "no evaluation"),
    (["--protocol", "geneval"], "line 1 lacks"),
    (["--protocol", "geneval", "--num-images", "2"], "--num-images has no meaning"),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=[" ".join(a) for a, _ in MISTAKES])
def test_mistakes_are_told_before_any_work(fails: Fails, family: Path, arguments: list[str], words: str) -> None:
    Path("prompts.txt").write_text("red apple\n")
    for folder in ("full", "empty"):
        Path(folder).mkdir()
    Path("full/note.txt").write_text("mine")
    usual = ["--prompts", "prompts.txt", "--report", "out"]
    assert words in fails("evaluate", "--family", family, *usual, *arguments)


def test_extras_are_named(fails: Fails, family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert "mulosd[bench]" in fails("evaluate", "--family", family, "--report", "out")
