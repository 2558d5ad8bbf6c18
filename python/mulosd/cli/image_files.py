"""Image files that remember their settings: PNG text, or the EXIF comment of JPEG and WebP."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from .._version import __version__

if TYPE_CHECKING:
    from PIL.Image import Image

# Suffix -> format, and how Pillow is to write it: as true to the pixels as the format can be.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
}
# EXIF: the directory of details, the user's comment in it, how that names its character set, and the software.
DETAILS, COMMENT, CHARSET, SOFTWARE = 0x8769, 0x9286, b"ASCII\0\0\0", 0x0131


def check_suffix(option: str, path: Path) -> None:
    """ValueError when no image can be written by this name."""
    if path.suffix.lower() not in FORMATS:
        what = f"not as {path.suffix[1:]}" if path.suffix else "as the suffix says"
        raise ValueError(
            f"{option} {path}: images are written as PNG, JPEG or WebP, {what}; use {path.with_suffix('.png')}"
        )


def save_image(
    file: BinaryIO, image: Image, settings: Mapping[str, str], suffix: str = ".png", quality: int | None = None
) -> None:
    """Write an image in the format of a suffix; `read_settings` finds the settings in it. A `quality` from 0 to 100
    makes JPEG and WebP smaller and less true."""
    from PIL.Image import Exif
    from PIL.PngImagePlugin import PngInfo

    kind, options = FORMATS[suffix.lower()]
    if quality is not None and kind != "PNG":
        options = {"quality": quality}
    if kind == "PNG":
        info = PngInfo()
        for key, value in {**settings, "Software": f"mulosd {__version__}"}.items():
            info.add_text(key, value)
        image.save(file, format=kind, pnginfo=info)
    else:
        exif = Exif()
        exif[SOFTWARE] = f"mulosd {__version__}"
        # ASCII with escapes: the other character sets of EXIF are read in several ways.
        exif[DETAILS] = {COMMENT: CHARSET + json.dumps(dict(settings)).encode()}
        image.save(file, format=kind, exif=exif.tobytes(), **options)


def read_settings(path: Path | str) -> dict[str, str] | None:
    """The settings that an image file states, as texts; None when it is no whole image or states none."""
    from ..files.images import opened

    try:
        with opened(Path(path)) as image:
            image.load()
            if image.format == "PNG":
                found = {k: str(v) for k, v in image.info.items() if isinstance(k, str) and k != "Software"}
            else:
                comment = image.getexif().get_ifd(DETAILS).get(COMMENT, b"")
                found = json.loads(bytes(comment).removeprefix(CHARSET)) if comment else {}
    except Exception:  # decoders of damaged files raise whatever comes
        return None
    return found if isinstance(found, dict) and "prompt" in found else None
