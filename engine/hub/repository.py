"""A folder as the Hugging Face hub lays it out: config.json, and weights in one or several safetensors files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..family import list_families
from ..paths import expanded
from ..weights import opened, read_shapes

NAME = re.compile(r"[\w.-]+/[\w.-]+")
CONFIG = "config.json"
PIPELINE = "model_index.json"
INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
# What is fetched of a repository: no code, no pickles.
WANTED = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model", "*.tiktoken")
# Of a pipeline, the folders of the autoregressive model and of its prompts: the rest is another's.
PART = "vision_language_encoder"
PROCESSOR = "processor"


def find(source: str | Path) -> Path | None:
    """The folder of a repository: `source` itself, or the copy in the cache of the hub, which is fetched once.

    Args:
        source: a folder, or OWNER/NAME.

    Returns:
        None where `source` is neither a folder nor of the form OWNER/NAME.

    Raises:
        ImportError: OWNER/NAME, and huggingface_hub is not installed.
        ValueError: the repository is not in the cache and cannot be reached; the message says what to do.
    """
    folder = expanded(source)
    if folder.is_dir():
        return folder
    text = str(source)
    if not NAME.fullmatch(text) or text.startswith(".") or folder.parent.is_dir():
        return None
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise ImportError(
            f"there is no folder {text}, and to look for a repository of that name takes huggingface_hub: "
            f"pip install 'mulosd[hf]'"
        ) from error
    try:
        folder = Path(snapshot_download(text, allow_patterns=[CONFIG, PIPELINE]))
        whole = not (folder / PIPELINE).is_file()
        patterns = WANTED if whole else [f"{part}/{p}" for part in (PART, PROCESSOR) for p in WANTED]
        return Path(snapshot_download(text, allow_patterns=list(patterns)))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"there is no folder {text}, and the repository {text} is neither in the cache nor can it be reached "
            f"({reason}): fetch it where there is a network (hf download {text}), and give the folder, or one of the "
            f"bundled families: {', '.join(list_families())}"
        ) from error


def read_object(file: Path) -> dict[str, Any]:
    """What a JSON file says; ValueError when it is none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold an object, it holds a {type(values).__name__}")
    return values


class Repository:
    """The model in a folder.

    Args:
        folder: holds config.json.

    Raises:
        ValueError: no config.json, or one that is no object.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / CONFIG).is_file():
            raise ValueError(f"{folder} holds no {CONFIG}")
        self.config = read_object(folder / CONFIG)

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type", ""))

    def optional(self, name: str) -> dict[str, Any]:
        """What another JSON file of the folder says; empty where there is none."""
        file = self.folder / name
        return read_object(file) if file.is_file() else {}

    @cached_property
    def files(self) -> dict[str, Path]:
        """The file of each tensor, by its name; ValueError where weights are missing or are no safetensors."""
        if (self.folder / INDEX).is_file():
            names = read_object(self.folder / INDEX).get("weight_map")
            if not isinstance(names, dict) or not all(
                isinstance(v, str) and re.fullmatch(r"[\w.-]+", v) for v in names.values()
            ):
                raise ValueError(f"{self.folder / INDEX} must hold a weight_map of names of files beside it")
            absent = sorted({file for file in names.values() if not (self.folder / file).is_file()})
            if absent:
                raise ValueError(f"{self.folder} is no whole repository: it lacks {', '.join(absent[:3])}")
            return {name: self.folder / file for name, file in names.items()}
        if not (self.folder / WHOLE).is_file():
            raise ValueError(
                f"{self.folder} holds neither {WHOLE} nor {INDEX}: weights are read from safetensors alone, which run "
                f"no code"
            )
        return dict.fromkeys(read_shapes(self.folder / WHOLE), self.folder / WHOLE)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors by name, from the files' headers."""
        found: dict[str, tuple[int, ...]] = {}
        for file in dict.fromkeys(self.files.values()):
            found |= read_shapes(file)
        return found

    def prefix(self, name: str, *prefixes: str) -> str:
        """The one of some prefixes under which there is a tensor of that name; ValueError lists them."""
        for prefix in prefixes:
            if prefix + name in self.files:
                return prefix
        raise ValueError(f"{self.folder} has no tensor {' or '.join(prefix + name for prefix in prefixes)}")

    @contextmanager
    def reading(self) -> Iterator[Callable[[str], Tensor]]:
        """A function that reads a tensor; files stay open meanwhile."""
        from contextlib import ExitStack

        with ExitStack() as stack:
            sources: dict[Path, Any] = {}

            def read(name: str) -> Tensor:
                file = self.files[name]
                if file not in sources:
                    sources[file] = stack.enter_context(opened(file))
                tensor: Tensor = sources[file].get_tensor(name)
                return tensor

            yield read


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a repository.

    Args:
        name: of the family.
        dtype: of the language model; None reads no weights and leaves tensors on the meta device.
        grids: sides in codes to draw; () is the model's usual one.
        prompt_length: most tokens of a prompt, template included; None is the architecture's usual number.
        first_grid: side of the grid before the image, for models that write one; None is what they were trained with.
    """

    name: str
    dtype: torch.dtype | None = torch.float32
    grids: tuple[int, ...] = ()
    prompt_length: int | None = None
    first_grid: int | None = None

    def __post_init__(self) -> None:
        if self.prompt_length is not None and self.prompt_length < 1:
            raise ValueError(f"prompt_length must be at least 1, got {self.prompt_length}")
        if any(side < 1 for side in self.grids):
            raise ValueError(f"grids must be sides of at least 1 code, got {list(self.grids)}")


@dataclass(frozen=True)
class Source:
    """How a tensor of a module is made of those of a repository.

    Args:
        names: of the repository's tensors.
        make: of these, in order.
    """

    names: tuple[str, ...]
    make: Callable[..., Tensor] = lambda tensor: tensor


def fill(
    repository: Repository,
    module: nn.Module,
    sources: Mapping[str, Source],
    dtype: torch.dtype | None,
) -> None:
    """Give a module that has none (meta tensors) the weights of a repository.

    Args:
        repository: where they are read from.
        module: whose tensors are all filled.
        sources: by name of the module's tensor.
        dtype: of floating-point weights; None leaves them on the meta device and compares shapes alone.

    Raises:
        ValueError: tensors are missing, of another shape, or hold NaN or infinity; the message names them.
    """
    wanted = module.state_dict()
    wrong = [f"lacks {name}" for key in wanted for name in sources[key].names if name not in repository.files]
    if not wrong:
        for key, value in wanted.items():
            source = sources[key]
            shapes = [repository.shapes[name] for name in source.names]
            try:
                made = tuple(source.make(*(torch.empty(shape, device="meta") for shape in shapes)).shape)
            except (RuntimeError, IndexError, ValueError) as error:
                reason = str(error).splitlines()[0]
                wrong.append(f"has {', '.join(source.names)} of shapes {[list(s) for s in shapes]} ({reason})")
                continue
            if made != tuple(value.shape):
                wrong.append(f"has {list(made)} for {source.names[0]}, not {list(value.shape)}")
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{repository.folder} does not fit its {CONFIG}: it {', '.join(wrong[:3])}{more}")
    if dtype is None:
        return
    state = {}
    with repository.reading() as read:
        for key in wanted:
            tensor = sources[key].make(*(read(name) for name in sources[key].names))
            if tensor.is_floating_point():
                if not bool(torch.isfinite(tensor).all()):
                    raise ValueError(f"{repository.folder} holds NaN or infinity in {sources[key].names[0]}")
                tensor = tensor.to(dtype)
            state[key] = tensor.contiguous()
    module.load_state_dict(state, assign=True)
    module.requires_grad_(False)
