"""Who draws the images of a batch: an engine that makes jobs of lines, and encoded images of jobs."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from ..cli.drawing import UNDER_WAY, encoded, outcomes
from ..cli.jobs import Job, job_of, placed, remembered, settled
from ..cli.prompt_list import Asked


@dataclass(frozen=True)
class Recipe:
    """What all images of a batch have in common.

    Args:
        family, device, dtype: of the engine, see `Engine.from_pretrained`.
        decoder, sampling: texts, of lines that name no decoder, and of all lines; without a decoder it is the family's
            default.
        seed: of lines that name none.
        num_images: images a line, with seeds from its seed on.
        size: side in px; None is what the decoder draws.
        under_way: images that an engine draws at a time.
        quantization: of the layers' weights, "int8", "fp8" or "none".
    """

    family: str = "emoji"
    device: str = "cpu"
    dtype: str | None = None
    decoder: str | None = None
    sampling: str = ""
    seed: int = 0
    num_images: int = 1
    size: int | None = None
    under_way: int = UNDER_WAY
    quantization: str = "none"


@dataclass(frozen=True)
class Prepared:
    """What becomes of a line: jobs, whose paths lie in the folder of the batch, or why it cannot be."""

    asked: Asked
    jobs: list[Job] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True)
class Drawn:
    """The end of a job, the `number`-th of those that were given: an encoded image with its statistics, or an error."""

    number: int
    data: bytes | None = None
    stats: dict[str, Any] | None = None
    error: str | None = None


class Painters(Protocol):
    """One engine, or several on many machines."""

    def prepare(self, asked: Sequence[Asked]) -> list[Prepared]:
        """What each line comes to."""

    def draw(self, jobs: Sequence[Job]) -> Generator[Drawn, None, None]:
        """The end of every job, in any order."""


class Painter:
    """One engine.

    Args:
        recipe: of the batch.

    Raises:
        ValueError: there is no such family, decoder, size or sampling.
    """

    def __init__(self, recipe: Recipe) -> None:
        from .. import Engine, SchedulerConfig
        from ..cli.options import read_decoder, read_sampling
        from ..engine.decoding.default import default_decoder, remark

        self.recipe = recipe
        config = SchedulerConfig(max_running=recipe.under_way)
        self.engine = Engine.from_pretrained(
            recipe.family,
            device=recipe.device,
            dtype=recipe.dtype,
            config=config,
            quantization=recipe.quantization,
        )
        self.sampling = read_sampling(self.engine.family, recipe.sampling)
        narrow = str(self.engine.dtype).removeprefix("torch.")
        self.common = remembered(self.engine.family, self.sampling, narrow, recipe.quantization)
        family = self.engine.family
        self._usual = self._resolved(read_decoder(recipe.decoder or default_decoder(family)))
        self._remark = remark(family) if recipe.decoder is None else None

    def _resolved(self, decoder: Any) -> Any:
        from ..cli.options import sized

        decoder = sized(decoder, self.recipe.size, self.engine.family)
        return self.engine.resolve(decoder, self.sampling)[0]

    def prepare(self, asked: Sequence[Asked]) -> list[Prepared]:
        """What each line comes to; one that cannot be has an error that names its place."""
        return [self._prepared(one) for one in asked]

    def _prepared(self, asked: Asked) -> Prepared:
        count = self.recipe.num_images
        try:
            settled(asked, count)
            decoder = self._usual if asked.decoder is None else self._resolved(placed(asked, asked.decoder))
            warnings = self.engine.check_prompts([asked.prompt])
            if asked.decoder is None and self._remark is not None:
                warnings.append(self._remark)
            first = self.recipe.seed if asked.seed is None else asked.seed
            if first + count > 2**63:
                raise ValueError(f"seeds of 2**63 and more: {first} and {count} images")
            jobs = [self._job(asked, first + n, decoder) for n in range(count)]
        except ValueError as error:
            text = str(error)
            return Prepared(asked, error=text if text.startswith(asked.place) else f"{asked.place}: {text}")
        return Prepared(asked, jobs, warnings)

    def _job(self, asked: Asked, seed: int, decoder: Any) -> Job:
        job = job_of(asked.prompt, seed, decoder, None, self.common, None)
        return Job(job.prompt, job.seed, job.decoder, self._path(asked, job), job.settings)

    def _path(self, asked: Asked, job: Job) -> Path:
        """Where an image lies in the folder: as its line says, or by what it is made of."""
        if asked.output is not None:
            path = Path(os.path.normpath(asked.output))
            if path.is_absolute() or path.parts[0] == "..":
                raise ValueError(f"{asked.place}: output {asked.output} leaves the folder of the batch")
            return path
        if asked.id is not None:
            return Path("images", f"{asked.id}.png" if self.recipe.num_images == 1 else f"{asked.id}-{job.seed}.png")
        name = fingerprint(job)
        return Path("images", name[:2], f"{name}.png")

    def draw(self, jobs: Sequence[Job]) -> Generator[Drawn, None, None]:
        """Encoded images in the order in which they are finished; one that fails has an error, and the others go on."""
        numbers = {id(job): number for number, job in enumerate(jobs)}
        with closing(outcomes(self.engine, jobs, self.sampling, None, self.recipe.under_way)) as found:
            for job, update in found:
                number = numbers[id(job)]
                if update.image is None or update.stats is None:
                    error = update.error or RuntimeError("the image has no pixels")
                    yield Drawn(number, error=f"{type(error).__name__}: {error}")
                else:
                    yield Drawn(number, encoded(job, update.image), update.stats.to_dict())


def fingerprint(job: Job) -> str:
    """A name for an image by all that it is made of, 24 hexadecimal digits; the version of this package is no part."""
    parts = [f"{key}={value}" for key, value in sorted(job.settings.items()) if key != "version"]
    return sha256("\0".join(parts).encode()).hexdigest()[:24]
