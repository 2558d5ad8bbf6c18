"""A family of a repository: which architecture it is, and what to say of those that are none of ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..family import Family, bundled_folder, there
from ..family_config import FILE
from ..paths import expanded
from ..registry import Registry
from .repository import CONFIG, PART, PIPELINE, Repository, Wanted, find, read_object

# One line an architecture: the function that loads it, by the `model_type` of config.json.
ARCHITECTURES = Registry(
    "mulosd.engine.hub",
    {"janus": ".janus:load", "emu3": ".emu3:load", "glm_image": ".glm_image:load"},
)
# Formats of the same models that are not read: with code of their own, or in pickles.
ELSEWHERE = {
    "multi_modality": "deepseek-community/Janus-Pro-1B or deepseek-community/Janus-Pro-7B",
    "Emu3": "BAAI/Emu3-Gen-hf",
}


def is_repository(folder: Path) -> bool:
    """Whether a folder is laid out as a repository of the hub, or a pipeline that holds one."""
    return (folder / CONFIG).is_file() or (folder / PIPELINE).is_file()


def model_folder(folder: Path) -> Path:
    """The folder of the model in a repository: of a pipeline, that of its autoregressive part."""
    if (folder / CONFIG).is_file() or not (folder / PIPELINE).is_file():
        return folder
    if (folder / PART / CONFIG).is_file():
        return folder / PART
    named = read_object(folder / PIPELINE).get("_class_name", "of no name")
    raise ValueError(
        f"{folder} is a pipeline ({named}) without a folder {PART}: it has no autoregressive part that is known here"
    )


def spelled(source: str | Path) -> tuple[str | Path, Wanted]:
    """A source without the settings behind it, and these; ValueError for a value that a setting cannot have."""
    text, *parts = str(source).split(":")
    pairs = dict(part.partition("=")[::2] for part in parts)
    if not parts or not pairs.keys() <= {"grids", "prompt_length"} or expanded(source).exists():
        return source, Wanted("")
    try:
        grids = tuple(int(side) for side in pairs["grids"].split(",")) if "grids" in pairs else ()
        length = int(pairs["prompt_length"]) if "prompt_length" in pairs else None
    except ValueError as error:
        raise ValueError(
            f"{source}: behind a repository stand grids=N,N and prompt_length=N, whole numbers ({error})"
        ) from error
    return text, Wanted("", grids=grids, prompt_length=length)


def load_repository(folder: Path, wanted: Wanted) -> Family:
    """The family of a repository.

    Raises:
        ValueError: an architecture that is not known, or a repository that is not whole.
    """
    repository = Repository(model_folder(folder))
    kind = repository.model_type
    if kind not in ARCHITECTURES:
        other = f"; the same model is read from {ELSEWHERE[kind]}" if kind in ELSEWHERE else ""
        raise ValueError(
            f"{folder} is of model_type {kind!r}; known here are {', '.join(ARCHITECTURES)}, as transformers saves "
            f"them{other}"
        )
    family: Family = ARCHITECTURES[kind](repository, wanted)
    return family


def load_family(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    weights: bool = True,
    grids: Sequence[int] = (),
    prompt_length: int | None = None,
) -> Family:
    """A bundled family by name, a family folder, or a repository of the Hugging Face hub.

    Args:
        source: name, folder, or OWNER/NAME of a repository, which is fetched once and then read from the hub's cache.
            What the other arguments say of a repository may stand behind it: "OWNER/NAME:grids=45,90".
        dtype: of the AR models and the conditioner.
        weights: False leaves all tensors on the meta device: sizes without memory.
        grids, prompt_length: of a repository, see `Wanted`.

    Raises:
        ImportError: OWNER/NAME, and huggingface_hub is not installed.
        ValueError: there is none, it is not whole, or of an architecture that is not known.
    """
    source, said = spelled(source)
    grids, prompt_length = grids or said.grids, said.prompt_length if prompt_length is None else prompt_length
    own = any(there(folder / FILE) for folder in (expanded(source), bundled_folder() / str(source)))
    folder = None if own else find(source)
    if folder is None or not is_repository(folder):
        if grids or prompt_length is not None:
            raise ValueError(f"grids and prompt_length are for repositories of the hub, and {source} is none")
        return Family.load(source, dtype=dtype, weights=weights)
    name = str(source) if folder != expanded(source) else folder.resolve().name
    return load_repository(folder, Wanted(name, dtype if weights else None, tuple(grids), prompt_length))
