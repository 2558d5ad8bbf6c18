"""The one reader of images: what an image viewer shows, as 8-bit RGB, whatever mode, depth and orientation a file has.

Known limits: gamma and HDR chunks of PNG are not applied, and of an animation or of several pages the first is read.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..engine.paths import expanded
from .pixels import eight_bits, on_white, upright

# In upper case too.
SUFFIXES = frozenset(
    [".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".j2k", ".avif"]
)
# By content, not by suffix. Not all that Pillow knows: some formats call other programs (EPS) or are no images.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "JPEG2000", "AVIF")
# Of one image. Pillow itself warns above it, and refuses twice as many.
LIMIT = 89_478_485
SHOWN = 10


def read_image(path: Path) -> Image.Image:
    """An image as a viewer shows it: turned upright, colours in sRGB, what is transparent on white.

    16-bit grey is scaled to 8 bits. No viewer agrees with another on floats and 32-bit integers: those from 0 to 1
    (floats), 255 or 65535 are scaled from there, others refused.

    Returns:
        an RGB image without metadata.

    Raises:
        ValueError: there is no such file, it is no image, damaged, cut short, or larger than LIMIT pixels.
    """
    path = expanded(path)
    try:
        with opened(path) as image:
            image.load()
            return upright(on_white(image), image)
    except Exception as error:  # the decoders of damaged files raise whatever comes
        raise ValueError(f"{path} cannot be read as an image: {reason(error)}") from error


def opened(path: Path) -> Image.Image:
    """An image of which only the header was read; ValueError when it is too large."""
    Image.init()
    with path.open("rb") as file:  # before Pillow: its error for a missing file and for a folder differ by version
        file.read(1)
    image = Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])
    if image.width * image.height > LIMIT:
        image.close()
        raise ValueError(f"{image.width} x {image.height} px are more than the limit of {LIMIT:,} pixels; shrink it")
    return image


def reason(error: Exception) -> str:
    """Why an image cannot be read, in words and without its path."""
    if isinstance(error, UnidentifiedImageError):
        return "it is of no image format that is known here"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"it is larger than the limit of {LIMIT:,} pixels; shrink it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return (str(error) or type(error).__name__).splitlines()[0]


def list_images(folder: Path) -> list[Path]:
    """Files of a folder and its subfolders that are images by their suffix, sorted.

    Hidden files and folders (`._x.jpg` of macOS, `.thumbnails`) and `__MACOSX` are left out, and so are folders that
    are called like an image. Links to nowhere are listed: reading them tells so.

    Raises:
        ValueError: there is no such folder, or one in it may not be read.
    """
    return sorted(path for path in visible(expanded(folder)) if path.suffix.lower() in SUFFIXES)


def visible(folder: Path) -> list[Path]:
    """All ordinary files of a folder and its subfolders but hidden ones."""

    def fail(error: OSError) -> None:
        raise ValueError(f"{error.filename} cannot be read as a folder: {(error.strerror or '').lower()}") from error

    found = []
    for here, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        paths = [Path(here, name) for name in files if not name.startswith(".")]
        # A pipe that is called like an image would be waited for without end.
        found += [path for path in paths if path.is_file() or not path.exists()]
    return found


def check_images(
    folder: Path,
    least: int = 1,
    side: int = 1,
    ratio: float = 8.0,
    decode: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    beside: Callable[[Path], str] | None = None,
) -> list[Path]:
    """Check all images of a folder before long work starts with them.

    Args:
        folder: with images, also in subfolders.
        least: images that are needed.
        side: px that the shorter side of each must have.
        ratio: of the longer to the shorter side that is allowed.
        decode: read every image whole, not its header alone: finds what is cut short or damaged, and takes longer.
        progress: called with (what, done, total) after each image.
        beside: says what is wrong with what belongs to an image, such as its caption, or nothing.

    Returns:
        the images, sorted.

    Raises:
        ValueError: there are too few, or some cannot be used: up to ten are named with the reason.
    """
    folder = expanded(folder)
    paths = list_images(folder)
    if len(paths) < least:
        others = Counter(path.suffix.lower() for path in visible(folder)) - Counter(p.suffix.lower() for p in paths)
        also = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in others.most_common(4))
        raise ValueError(
            f"{folder} holds {len(paths)} images ({' '.join(sorted(SUFFIXES))}), {least} are needed"
            + (f"; it also holds what is not read: {also}" if also else "")
        )
    check_files(folder, paths, side, ratio, decode, progress, beside)
    return paths


def check_files(
    folder: Path,
    paths: Sequence[Path],
    side: int = 1,
    ratio: float = 8.0,
    decode: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    beside: Callable[[Path], str] | None = None,
) -> None:
    """Check some images of a folder; arguments and errors are those of `check_images`."""
    wrong = []
    for done, path in enumerate(paths, 1):
        if complaint := complain(path, side, ratio, decode) or (beside(path) if beside else ""):
            wrong.append(f"{path.relative_to(folder)} ({complaint})")
        if progress is not None:
            progress("checking images", done, len(paths))
    if wrong:
        more = f", and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ValueError(
            f"{len(wrong)} of {len(paths)} images in {folder} cannot be used: {', '.join(wrong[:SHOWN])}{more}; "
            f"repair them or take them out"
        )


def complain(path: Path, side: int, ratio: float, decode: bool) -> str:
    """What is wrong with an image, or nothing."""
    try:
        with opened(path) as image:
            width, height = image.size
            if min(width, height) < side:
                return f"{width} x {height} px, the shorter side must have {side}"
            if max(width, height) > ratio * min(width, height):
                return f"{width} x {height} px, longer than {ratio:g} times its shorter side"
            if decode:
                image.load()
                eight_bits(image)
    except Exception as error:
        return reason(error)
    return ""
