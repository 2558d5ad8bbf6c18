"""Files that the command line writes: names, checks before any work starts, and writes that are whole or absent."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..engine.atomic import is_stream
from .image_files import FORMATS, check_suffix

OTHER_FORMATS = (".gif", ".bmp", ".tif", ".tiff", ".avif", ".jxl", ".heic", ".svg", ".pdf")
SLUG_LENGTH = 60
# File systems count bytes, and letters beyond ASCII take up to four.
SLUG_BYTES = 120


def check_file(option: str, path: Path, made: Path | None = None) -> None:
    """ValueError when no file can be written at `path`; the directory `made` may be missing, it is about to be made."""
    if str(path) == "-":
        raise ValueError(f"{option} - is standard output, which takes none of this; name a file")
    if path.is_dir():
        raise ValueError(f"{option} {path} is a directory; name a file in it")
    if is_stream(path):
        return  # /dev/null, /dev/stdout or a pipe is written to; nothing is made beside it
    if made is None or path.absolute().parent != made.absolute():
        check_parent(option, path)


def check_parent(option: str, path: Path) -> None:
    parent = path.absolute().parent
    if not parent.is_dir():
        raise ValueError(f"{option} {path}: there is no directory {parent}; create it first (mkdir -p '{parent}')")
    check_writable(option, path, parent)


def check_writable(option: str, path: Path, folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{option} {path}: the directory {folder} is not writable; choose another")


def check_below(option: str, path: Path) -> None:
    """ValueError when `path` cannot be written even where missing folders are made."""
    if path.is_dir():
        raise ValueError(f"{option}: {path} is a directory, an image should go there; move it, or choose another name")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise ValueError(f"{option}: {path} cannot be made, {folder} is a file; choose another name")
    check_writable(option, path, folder)


def check_images(images: Path | None, config: Path | None) -> None:
    """ValueError unless at most one of a folder of images and a training file is given, and it exists."""
    if images is not None and config is not None:
        raise ValueError("--images and --config both name images: give one of them")
    if images is not None and not images.is_dir():
        raise ValueError(f"--images {images}: there is no such folder")
    if config is not None and not config.is_file():
        raise ValueError(f"--config {config}: there is no such file; configs/photo.yaml is an example")


def slug(prompt: str) -> str:
    """A prompt as a file name: "A red apple!" -> "a-red-apple"."""
    words = re.sub(r"[\W_]+", "-", prompt.lower()).strip("-")
    cut = words[:SLUG_LENGTH].encode()[:SLUG_BYTES].decode(errors="ignore")
    return cut.rstrip("-") or "image"


@dataclass(frozen=True)
class Output:
    """Where images go: one file, a directory with a name for each, or standard output ("-").

    In a directory an image is called `SLUG-seedN.png`, and with several prompts `02-SLUG-seedN.png` after the prompt's
    number.
    """

    path: Path
    directory: bool

    @property
    def stream(self) -> bool:
        """Whether it is standard output."""
        return not self.directory and str(self.path) == "-"

    @classmethod
    def check(cls, path: Path, images: int) -> Output:
        """Decide what `path` means for this many images; ValueError when it cannot be."""
        suffix = path.suffix.lower()
        if str(path) == "-":
            if images > 1:
                raise ValueError(f"--output - takes one PNG, but {images} images were asked for; name a directory")
            return cls(path, False)
        if path.is_dir():
            check_writable("--output", path, path)
            return cls(path, True)
        if suffix in OTHER_FORMATS:
            check_suffix("--output", path)
        if suffix in FORMATS:
            if images > 1:
                raise ValueError(
                    f"--output {path} is one file, but {images} images were asked for; name a directory, such as "
                    f"{path.with_suffix('')}/"
                )
            check_parent("--output", path)
            return cls(path, False)
        if path.exists():
            raise ValueError(f"--output {path} is a file, but neither an image nor a directory; choose another name")
        check_parent("--output", path)
        return cls(path, True)

    def paths(self, prompts: list[str], seeds: list[int], numbers: list[int]) -> list[Path]:
        """One path an image. `numbers` holds the number, from 1 on, of the prompt that each image belongs to."""
        if not self.directory:
            return [self.path]
        several = len(set(numbers)) > 1
        width = max(2, len(str(max(numbers))))
        return [
            self.path / (f"{number:0{width}}-" * several + f"{slug(prompt)}-seed{seed}.png")
            for prompt, seed, number in zip(prompts, seeds, numbers, strict=True)
        ]
