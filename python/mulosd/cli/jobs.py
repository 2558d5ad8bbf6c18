"""Images to draw: from what a line asks for to a prompt, a seed, a decoder and a file that is there already or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._version import __version__
from .image_files import check_suffix, read_settings
from .options import read_decoder, spell_sampling
from .prompt_list import Asked

if TYPE_CHECKING:
    from ..engine.conditioning import Condition
    from ..engine.decoding import Decoder
    from ..engine.family import Family
    from ..engine.sampling import SamplingParams


@dataclass(frozen=True, eq=False)
class Job:
    """One image to draw.

    Args:
        prompt, seed, decoder: of the image; the decoder is resolved.
        path: file to write; None is standard output.
        settings: what the file is to remember, as texts.
        features: its precomputed condition, or None.
    """

    prompt: str
    seed: int
    decoder: Decoder
    path: Path | None
    settings: dict[str, str]
    features: Condition | None = None

    @property
    def entry(self) -> dict[str, Any]:
        """What --stats holds of it before it is drawn."""
        named = {k: v for k, v in self.settings.items() if k not in ("decoder", "version")}
        return {"file": self.file, **named, "seed": self.seed, "spelling": self.settings["decoder"]}

    @property
    def file(self) -> str:
        """The path as it can be printed and stored, whatever its bytes."""
        return printable_path(self.path or "-")

    def conflict(self) -> str | None:
        """How a file that is there differs from what this job would write; None when it is the same image."""
        found = None if self.path is None else read_settings(self.path)
        return "is no image that this command wrote" if found is None else self.difference(found)

    def difference(self, found: dict[str, str]) -> str | None:
        """How an image with the settings `found` differs from this one; None when it is the same image."""
        for key in sorted({*self.settings, "features", "quantization"} - {"version"}):
            here, wanted = found.get(key), self.settings.get(key)
            if here != wanted:
                return f"was drawn with {key} {here!r}, not {wanted!r}"
        return None


def printable_path(path: Path | str) -> str:
    """A path as it can be printed and stored, whatever its bytes."""
    return str(path).encode(errors="surrogateescape").decode(errors="replace")


def missing(jobs: Sequence[Job]) -> list[int]:
    """Numbers of the jobs whose files are not there yet.

    Raises:
        ValueError: a file of that name is there, but another image.
    """
    there = [i for i, job in enumerate(jobs) if job.path is not None and job.path.exists()]
    others = [(jobs[i], conflict) for i in there if (conflict := jobs[i].conflict()) is not None]
    if others:
        job, conflict = others[0]
        more = f" (and {len(others) - 1} more files are others)" if len(others) > 1 else ""
        raise ValueError(
            f"{job.file} exists already and {conflict}{more}: choose another folder (--output), or draw over it "
            f"(--overwrite)"
        )
    return [i for i in range(len(jobs)) if i not in set(there)]


def settled(asked: Asked, num_images: int) -> Asked:
    """A prompt that says something and can be stored; ValueError otherwise."""
    prompt, place = asked.prompt, asked.place
    if not prompt.strip():
        raise ValueError(f'{place} is empty; describe an image, such as "a cat on a blue background"')
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{place} is no text in UTF-8: {prompt!r}") from error
    if prompt.startswith("@") and Path(prompt[1:]).is_file():
        raise ValueError(f"{place} is {prompt}: --prompts {prompt[1:]} reads prompts from a file")
    if asked.output is not None:
        check_suffix(f"{place}: output", asked.output)
        if num_images > 1:
            raise ValueError(f"{place} names one output, but --num-images is {num_images}; leave one of them out")
    return asked


def placed(asked: Asked, text: str) -> Decoder:
    """The decoder that a text names; errors say where it stands when that is a list."""
    try:
        return read_decoder(text)
    except ValueError as error:
        if asked.decoder is None:
            raise
        raise ValueError(f"{asked.place}: {error}") from error


def remembered(family: Family, sampling: SamplingParams, dtype: str, quantization: str) -> dict[str, str]:
    """What the files of all images of a call remember alike; types as the command line calls them."""
    common = {"family": family.name, "sampling": spell_sampling(sampling), "dtype": dtype}
    return common if quantization == "none" else {**common, "quantization": quantization}


def job_of(
    prompt: str, seed: int, decoder: Decoder, path: Path | None, common: dict[str, str], condition: Condition | None
) -> Job:
    """The job of one image, with what its file is to remember; `common` is what `remembered` gave."""
    from ..engine.decoding import spell

    settings = {"prompt": prompt, "seed": str(seed), "decoder": spell(decoder), **common}
    if condition is not None:
        settings["features"] = digest(condition)
    return Job(prompt, seed, decoder, path, {**settings, "version": __version__}, condition)


def digest(condition: Condition) -> str:
    """What tells one precomputed condition from another."""
    from hashlib import sha256

    values = condition.features.cpu()
    return sha256((values.float() if values.is_floating_point() else values).numpy().tobytes()).hexdigest()[:16]
