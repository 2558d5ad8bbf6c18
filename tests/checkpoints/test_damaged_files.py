"""Files that are not what their name says: one line that names the file, says what it is and what to do."""

from __future__ import annotations

import gzip
import json
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from released import tiny_ar
from safetensors.torch import save_file

from mulosd.checkpoints import load_ar, load_ta_tok, load_vq
from mulosd.data.photos import Photos
from mulosd.engine.file_kind import identify
from mulosd.engine.weights import read_tensors, write_tensors
from mulosd.measure.kept_features import KeptFeatures
from mulosd.measure.readers.classes import ClassReader
from mulosd.train.checkpoint import read as read_training

READERS: dict[str, Callable[[Path], Any]] = {
    "ar": lambda file: load_ar(file, heads=2),
    "vq": load_vq,
    "ta_tok": load_ta_tok,
    "training": read_training,
    "weights": read_tensors,
    "photos": Photos.load,
    "features": KeptFeatures.load,
    "classes": ClassReader.load,
}


def other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "weights are elsewhere")


OTHERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "HTML page": (lambda p: p.write_text("\n<!DOCTYPE html><html>Sign in</html>"), "is a web page.*download the file"),
    "git-lfs pointer": (
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"),
        "is a git-lfs pointer.*git lfs pull",
    ),
    "gzip": (lambda p: p.write_bytes(gzip.compress(b"weights")), r"compressed with gzip.*gunzip"),
    "zip that is no torch archive": (other_zip, "a zip archive of 1 files.*unzip"),
    "empty file": (lambda p: p.write_bytes(b""), "is empty.*download it again"),
    "1-byte file": (lambda p: p.write_bytes(b"\x80"), "is 1 byte long.*download it again"),
    "text": (lambda p: p.write_text("Not Found: no such repository"), "is a text.* look into it"),
    "noise": (lambda p: p.write_bytes(bytes(range(256)) * 8), "of no kind that is known here, or damaged"),
    "directory": (lambda p: p.mkdir(), "is a folder; name the file in it|there is no family"),
    "missing file": (lambda p: None, "there is no .*"),
    "TorchScript": (
        lambda p: torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(p)),
        "is a TorchScript program, which runs code",
    ),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", OTHERS)
def test_what_a_file_is_and_what_to_do_is_said_in_one_line(kind: str, reader: str, tmp_path: Path) -> None:
    make, message = OTHERS[kind]
    path = tmp_path / "weights.pt"
    make(path)
    # What is to be done about a run's own checkpoint is another thing.
    message = message.split(".*")[0].split("|")[0] if reader == "training" else message
    with pytest.raises(ValueError, match=message) as raised:
        READERS[reader](path)
    said = str(raised.value)
    assert str(path) in said and "\n" not in said
    assert "weights_only" not in said


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors", ""])
def test_a_renamed_safetensors_or_torch_file_is_read_as_what_it_is(suffix: str, tmp_path: Path) -> None:
    state, path = tiny_ar("class", 4, 0), tmp_path / f"renamed{suffix}"
    write_tensors(path, state)
    first = load_ar(path, heads=2)
    torch.save(state, path)
    second = load_ar(path, heads=2)
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())


def test_kinds_of_whole_and_cut_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    torch.save({"a": torch.zeros(64)}, path)
    assert identify(path).name == "torch"
    path.write_bytes(path.read_bytes()[:-30])
    assert identify(path).name == "cut zip"
    save_file({"a": torch.zeros(64)}, path)
    assert identify(path).name == "safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert identify(path).name == "cut safetensors"
    np.savez(path.with_suffix(".npz"), a=np.zeros(3))
    assert identify(path.with_suffix(".npz")).name == "npz"
    np.save(path.with_suffix(".npy"), np.zeros(3))
    assert identify(path.with_suffix(".npy")).name == "npy"


def test_a_small_checkpoint_whose_names_count_to_200000_makes_no_large_model(tmp_path: Path) -> None:
    path, state = tmp_path / "layers.pt", tiny_ar("class", 4, 0)
    torch.save({**state, "layers.200000.attention_norm.weight": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"layers\.pt has 3 parts layers\.N, layers\.200000 among them, but layers\.2"):
        load_ar(path, heads=2)


@pytest.mark.parametrize(
    "name", ["layers.9999999999999999999999.x", "layers.x.y", "layers.-1.y", "layers..y", "layers."]
)
def test_names_of_layers_that_are_no_numbers(name: str, tmp_path: Path) -> None:
    torch.save({**tiny_ar("class", 4, 0), name: torch.ones(1)}, path := tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"odd\.pt.*missing: it is no whole model"):
        load_ar(path, heads=2)


def test_tensors_that_pretend_to_be_larger_than_the_file_are_refused_before_they_are_copied(tmp_path: Path) -> None:
    path, state = tmp_path / "views.pt", tiny_ar("class", 4, 0)
    torch.save({**state, "tok_embeddings.weight": torch.zeros(1, 1).expand(10**7, 10**5)}, path)
    with pytest.raises(ValueError, match=r"tok_embeddings\.weight has 4,000,000,000,000 bytes by its shape"):
        load_ar(path, heads=2)
    shared = torch.zeros(1000)
    torch.save({f"w{i}": shared for i in range(100)}, path)
    with pytest.raises(ValueError, match="which the file of"):
        load_ar(path, heads=2)
    torch.save({"w": torch.eye(2).to_sparse()}, path)
    with pytest.raises(ValueError, match="a sparse, quantized or nested tensor"):
        load_ar(path, heads=2)


def test_arrays_of_numpy_that_pretend_to_be_larger_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "photos.npz"
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        for key in ("data", "offs", "label", "classes"):
            archive.writestr(f"{key}.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 8)
    with pytest.raises(ValueError, match=r"photos\.npz.*1000000000000.*do not hold"):
        Photos.load(path)
    np.savez(path, data=np.asarray([{}], object), offs=np.zeros(1), label=np.zeros(1), classes=np.zeros(1))
    with pytest.raises(ValueError, match="objects of Python"):
        Photos.load(path)


def mutations(whole: bytes, rng: np.random.Generator, count: int) -> Iterator[bytes]:
    """Cuts, flips of single bytes near the start and anywhere, and runs of zeros."""
    for _ in range(count):
        data, how = bytearray(whole), rng.integers(4)
        at = int(rng.integers(len(data)))
        if how == 0:
            del data[at:]
        elif how == 1:
            data[at] ^= int(rng.integers(1, 256))
        elif how == 2:
            data[at % min(len(data), 600)] ^= int(rng.integers(1, 256))
        else:
            data[at : at + 16] = bytes(len(data[at : at + 16]))
        yield bytes(data)


def changed_keys(file: Path, rng: np.random.Generator) -> bytes:
    """A safetensors file with a name, a shape, a type or the metadata of its header changed."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    name = list(header)[rng.integers(len(header))]
    odd: list[Any] = [None, -1, 10**18, "", [], {}, [[1]], "F4", {"a": "b"}]
    if rng.random() < 0.4 and isinstance(header[name], dict):
        header[name][list(header[name])[rng.integers(len(header[name]))]] = odd[rng.integers(len(odd))]
    elif rng.random() < 0.5:
        header[f"{name}.{rng.integers(10**9)}"] = header.pop(name)
    else:
        header[name] = odd[rng.integers(len(odd))]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def samples(folder: Path, files: Any) -> dict[str, Path]:
    """A whole small file for each reader."""
    state = torch.load(files["c2i_4.pt"], weights_only=False)["model"]
    write_tensors(folder / "ar.safetensors", state)
    training = {"module": {"w": torch.zeros(8)}, "ema": {"w": torch.ones(8)}, "optimizers": [{"a": 1}], "step": 3}
    torch.save(training, folder / "training.pt")
    ClassReader(torch.ones(2, 3), torch.ones(2), ["cat", "dog"]).save(folder / "classes.safetensors")
    pixels = np.frombuffer(b"no image but bytes", np.uint8)
    np.savez(
        folder / "photos.npz", data=pixels, offs=np.asarray([0, 9, 18]), label=np.asarray([0, 1]),
        classes=np.asarray(["cat", "dog"]),
    )  # fmt: skip
    halves = np.ones((3, 2, 4), np.float32)
    KeptFeatures({"network": "x"}, *halves, ("cat", "dog")).save(folder / "features.npz")
    return {
        "ar": files["c2i_4.pt"],
        "ar ": folder / "ar.safetensors",
        "vq": files["vq.pt"],
        "ta_tok": files["ta_tok.pth"],
        "training": folder / "training.pt",
        "classes": folder / "classes.safetensors",
        "photos": folder / "photos.npz",
        "features": folder / "features.npz",
    }


def refusals(reader: Callable[[Path], Any], file: Path, contents: Iterator[bytes]) -> list[str]:
    """What a reader says of a file with these contents; anything but a ValueError is raised."""
    said = []
    for data in contents:
        file.write_bytes(data)
        try:
            reader(file)
        except ValueError as error:
            said.append(str(error))
    return said


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_damage_of_a_file_is_read_or_refused_with_the_files_name(files: Any, tmp_path: Path) -> None:
    """60 cuts, flips and holes of each kind of file: nothing but a ValueError that names it, and no long work."""
    rng = np.random.default_rng(11)
    for key, whole in samples(tmp_path, files).items():
        damaged = tmp_path / f"damaged-{whole.name}"
        said = refusals(READERS[key.strip()], damaged, mutations(whole.read_bytes(), rng, 60))
        assert len(said) > 12, key
        for text in said:
            assert str(damaged) in text and "\n" not in text and "weights_only" not in text


@pytest.mark.parametrize("key", ["ar", "classes"])
def test_any_changed_key_of_a_safetensors_header_is_read_or_refused(key: str, files: Any, tmp_path: Path) -> None:
    rng, damaged = np.random.default_rng(3), tmp_path / "damaged.safetensors"
    whole = samples(tmp_path, files)["ar " if key == "ar" else key]
    READERS[key](whole)
    said = refusals(READERS[key], damaged, (changed_keys(whole, rng) for _ in range(80)))
    assert len(said) > 40
    assert all(str(damaged) in text and "\n" not in text for text in said)
