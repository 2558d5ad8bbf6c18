"""A batch by actors: one that dies costs its unfinished images alone."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live import calibrated

from mulosd.batch import Folder, Painter, Painters, Recipe, run
from mulosd.ray import actors
from mulosd.ray.actors import Actors, Part

pytestmark = pytest.mark.slow


def listed(folder: Path, count: int = 12) -> str:
    path = folder / "list.jsonl"
    path.write_text("".join(json.dumps({"prompt": "red apple", "seed": n, "id": f"n{n}"}) + "\n" for n in range(count)))
    return str(path)


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = calibrated().save(tmp_path_factory.mktemp("families") / "random")
    return Recipe(str(folder), decoder="serial", under_way=2)


def mortal(tmp: Path, at: int, opens: int = 99) -> Callable[[Recipe], Painters]:
    """An engine whose process dies behind its image `at`, once; of those that follow, `opens` can begin. All of them
    write down what they draw."""
    log, grave, rows = tmp / "drawn.txt", tmp / "died", tmp / "out" / "images.jsonl"

    def make(recipe: Recipe) -> Painters:
        if grave.exists() and opens == 0:
            os._exit(1)

        class Mortal(Painter):
            def draw(self, jobs: Any) -> Any:
                for number, drawn in enumerate(super().draw(jobs), 1):
                    with log.open("a") as file:
                        file.write(f"{jobs[drawn.number].seed} {os.getpid()}\n")
                    yield drawn
                    if number == at and not grave.exists():
                        while len(rows.read_text().splitlines()) < at:  # what it gave away is not lost
                            time.sleep(0.01)
                        grave.touch()
                        os._exit(1)

        return Mortal(recipe)

    return make


def drawn(tmp: Path) -> list[tuple[int, str]]:
    """Seeds in the order of drawing, each with the process."""
    pairs = [line.split() for line in (tmp / "drawn.txt").read_text().splitlines()]
    return [(int(seed), process) for seed, process in pairs]


def images(tmp: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (tmp / "out" / "images").glob("*.png")}


def test_an_actor_that_dies_costs_its_unfinished_images_alone(cluster: None, recipe: Recipe, tmp_path: Path) -> None:
    told: list[str] = []
    folder = Folder(tmp_path / "out")
    with Actors(recipe, count=1, tell=told.append, make=mortal(tmp_path, 5)) as pool:
        counts = run(listed(tmp_path), folder, recipe, pool)
    assert counts.complete and (counts.drawn, counts.failed) == (12, 0)
    seeds = [seed for seed, _ in drawn(tmp_path)]
    assert sorted(seeds) == list(range(12)), "each once: the other 7 by those that came after"
    first = drawn(tmp_path)[0][1]
    assert [process == first for _, process in drawn(tmp_path)] == [True] * 5 + [False] * 7
    assert len(told) == 1 and "an actor died" in told[0]
    # The same images as in one process.
    alone = Folder(tmp_path / "alone")
    run(listed(tmp_path), alone, recipe, Painter(recipe))
    assert images(tmp_path) == {path.name: path.read_bytes() for path in (tmp_path / "alone" / "images").glob("*")}


def test_a_batch_that_ends_with_its_actor_is_resumed(
    cluster: None, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors, "FAILED_STARTS", 1)
    name, folder = listed(tmp_path), Folder(tmp_path / "out")
    pool = Actors(recipe, count=1, make=mortal(tmp_path, 5, opens=0))
    with pool, pytest.raises(ChildProcessError, match="died before they were ready"):
        run(name, folder, recipe, pool)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [manifest[n] for n in ("complete", "images", "drawn")] == [False, 12, 5]
    before = images(tmp_path)
    assert len(before) == 5
    with Actors(recipe, count=1, make=mortal(tmp_path, 5)) as again:
        counts = run(name, folder, recipe, again)
    assert (counts.complete, counts.found, counts.drawn) == (True, 5, 7)
    seeds = [seed for seed, _ in drawn(tmp_path)]
    assert sorted(seeds) == list(range(12)) and before.items() < images(tmp_path).items()


def test_an_image_that_kills_its_actors_is_a_row(
    cluster: None, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors, "TRIES", 1)

    def make(recipe: Recipe) -> Painters:
        class Poisoned(Painter):
            def draw(self, jobs: Any) -> Any:
                if any(job.seed == 1 for job in jobs):
                    os._exit(1)
                yield from super().draw(jobs)

        return Poisoned(recipe)

    with Actors(recipe, count=1, make=make) as pool:
        counts = run(listed(tmp_path, 3), Folder(tmp_path / "out"), recipe, pool)
    assert (counts.drawn, counts.failed) == (2, 1)
    [row] = [json.loads(line) for line in (tmp_path / "out" / "errors.jsonl").read_text().splitlines()]
    assert row["seed"] == "1" and "died while they drew this image alone" in row["error"]


def test_what_a_recipe_cannot_be_is_told_as_such(cluster: None, recipe: Recipe) -> None:
    with (
        pytest.raises(ValueError, match="decoders must be chosen from"),
        Actors(Recipe(recipe.family, decoder="no"), count=1),
    ):
        pass


def test_what_is_left_of_a_part_is_halved_until_one_is_alone() -> None:
    part = Part([3, 4, 5, 6, 7])
    part.left -= {4}
    halves = part.again()
    assert [one.numbers for one in halves] == [[3, 5], [6, 7]]
    [single] = [one for one in halves[0].again() if one.numbers == [3]]
    assert [one.deaths for one in single.again()] == [1] and single.again()[0].again()[0].deaths == 2
    single.left.clear()
    assert single.again() == []
