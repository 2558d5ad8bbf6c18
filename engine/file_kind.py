"""What a file is by its first bytes, whatever its name says: errors about a file tell that, and what to do."""

from __future__ import annotations

import json
import os
import re
import stat
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

from .paths import expanded

AGAIN = "download it again"
START = 1024
# safetensors itself refuses longer headers.
HEADER = 100_000_000


@dataclass(frozen=True)
class FileKind:
    """What a file is.

    Attributes:
        name: short, to decide by: "torch", "old torch", "safetensors", "npz", "npy", or what else it is.
        words: for messages, with an article.
        advice: what to do where something else was wanted.
    """

    name: str
    words: str
    advice: str


@dataclass(frozen=True)
class Sign:
    """How the files of a kind begin."""

    start: bytes
    kind: FileKind


def packed(name: str, command: str) -> FileKind:
    return FileKind(name, f"compressed with {name}", f"unpack it first ({command} FILE)")


def picture(name: str) -> FileKind:
    return FileKind(name, f"an image ({name})", "name another file")


SIGNS = (
    Sign(
        b"version https://git-lfs",
        FileKind("git-lfs pointer", "a git-lfs pointer, not the file itself", "run `git lfs pull` in its repository"),
    ),
    Sign(b"\x1f\x8b", packed("gzip", "gunzip")),
    Sign(b"BZh", packed("bzip2", "bunzip2")),
    Sign(b"\xfd7zXZ\0", packed("xz", "unxz")),
    Sign(b"\x28\xb5\x2f\xfd", packed("zstd", "unzstd")),
    Sign(b"7z\xbc\xaf\x27\x1c", packed("7-Zip", "7z x")),
    Sign(b"Rar!\x1a\x07", packed("RAR", "unrar x")),
    Sign(b"\x93NUMPY", FileKind("npy", "an array of numpy (.npy)", "name another file")),
    Sign(b"\x89HDF\r\n\x1a\n", FileKind("HDF5", "an HDF5 file (of Keras, for example)", "save its weights with torch")),
    Sign(b"GGUF", FileKind("GGUF", "a GGUF file", "take the original weights")),
    Sign(b"\x89PNG\r\n\x1a\n", picture("PNG")),
    Sign(b"\xff\xd8\xff", picture("JPEG")),
    Sign(b"%PDF-", FileKind("PDF", "a PDF document", "name another file")),
    Sign(b"\x7fELF", FileKind("program", "a program", "name another file")),
)
MARKUP = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|\?xml|!--|title|script)", re.IGNORECASE)
TORCH = FileKind("torch", "a torch file", "name it .pt")
OLD_TORCH = FileKind("old torch", "a torch file of before version 1.6, or another pickle", "name it .pt")
SAFETENSORS = FileKind("safetensors", "a safetensors file", "name it .safetensors")
CUT_SAFETENSORS = FileKind("cut safetensors", "a safetensors file that is cut short or damaged", AGAIN)
CUT_ZIP = FileKind("cut zip", "a torch or zip file that is cut short or damaged", AGAIN)
NPZ = FileKind("npz", "an archive of numpy arrays (.npz)", "name another file")
TORCHSCRIPT = FileKind(
    "TorchScript", "a TorchScript program, which runs code", "save its state dict, best as safetensors"
)


def identify(path: str | Path) -> FileKind:
    """What a file is.

    Raises:
        ValueError: there is no such file, it is a folder or no ordinary file, or it may not be read.
    """
    file = expanded(path)
    try:
        mode = file.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ValueError(f"{file} is a folder; name the file in it")
        if not stat.S_ISREG(mode):
            raise ValueError(f"{file} is a device or a pipe; name an ordinary file")
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            start = opened.read(START)
            return by_start(start, size) or by_content(file, start, size)
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {file}; check the path") from error
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {(error.strerror or str(error)).lower()}") from error


def by_start(start: bytes, size: int) -> FileKind | None:
    """The kind of a file that its first bytes tell for sure."""
    if size == 0:
        return FileKind("empty", "empty", AGAIN)
    if MARKUP.match(start):
        advice = "download the file itself: its address often ends in the file's name, and may need a log-in"
        return FileKind("web page", "a web page (HTML), not what it was to hold", advice)
    for sign in SIGNS:
        if start.startswith(sign.start):
            return sign.kind
    if start[257:262] == b"ustar":
        return FileKind("tar", "a tar archive", "unpack it (tar xf FILE) and name the file in it")
    return None


def by_content(file: Path, start: bytes, size: int) -> FileKind:
    """The kind of a file that takes a longer look."""
    if start.startswith(b"PK"):
        return kind_of_zip(file)
    if len(start) >= 9 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= HEADER:
        return SAFETENSORS if whole_safetensors(file, size) else CUT_SAFETENSORS
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return OLD_TORCH
    if size < 16:
        return FileKind("too small", f"{size} byte{'s' if size > 1 else ''} long", AGAIN)
    try:
        text = start.rstrip(b"\0").decode(errors="strict" if size <= START else "ignore")
    except UnicodeDecodeError:
        text = "\0"
    if all(letter.isprintable() or letter in "\n\r\t\ufeff" for letter in text):
        json_text = text.lstrip("\ufeff \t\r\n").startswith(("{", "["))
        words = "a text (JSON)" if json_text else "a text"
        return FileKind("text", words, "look into it: where it holds a message of a server, download the file again")
    return FileKind("unknown", "of no kind that is known here, or damaged", AGAIN)


def kind_of_zip(file: Path) -> FileKind:
    """The kind of a zip archive by the names in it."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except Exception:  # damaged archives raise whatever comes
        return CUT_ZIP
    names = [entry.filename for entry in entries]
    if any(name.split("/")[-1] == "data.pkl" and name.count("/") <= 1 for name in names):
        if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
            return TORCHSCRIPT
        stored = sum(entry.file_size for entry in entries)
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or stored > file.stat().st_size:
            words = "a torch file whose parts are compressed or lie over one another, as torch writes none"
            return FileKind("odd torch", words, AGAIN)
        return TORCH
    if any(name.endswith(".npy") for name in names):
        return NPZ
    return FileKind("zip", f"a zip archive of {len(names)} files", "unpack it (unzip FILE) and name the file in it")


def whole_safetensors(file: Path, size: int) -> bool:
    """Whether a file has the length that its safetensors header says, which must be JSON."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        if 8 + length > size:
            return False
        try:
            header = json.loads(opened.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            return 8 + length + max(ends, default=0) == size
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            return False


def check_kind(path: str | Path, wanted: tuple[str, ...], what: str) -> FileKind:
    """The kind of a file, which must be one of those wanted.

    Args:
        path: the file.
        wanted: names of kinds.
        what: is wanted, in words.

    Raises:
        ValueError: it is something else; one line says what, and what to do.
    """
    kind = identify(path)
    if kind.name not in wanted:
        raise ValueError(f"{expanded(path)} is {kind.words}; {what} is wanted: {kind.advice}")
    return kind
