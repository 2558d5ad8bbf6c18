"""Released checkpoints to a family folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engine.conditioning.captions import ENCODER
from ..engine.family import Family
from ..engine.family_config import FORMAT, write_json
from ..engine.models.ar_dtok import PREFIXES
from ..engine.paths import expanded
from ..engine.weights import new_folder, write_weights
from .ar import HEADS, METADATA, check_is_ar, translate
from .container import Checkpoint, count_parts, read_checkpoint
from .source import locate
from .ta_tok import translate_ta_tok
from .vq import translate_vq

Report = Callable[[str, int, int], None]

# As the public code of each project samples.
SAMPLING: dict[str, dict[str, Any]] = {
    "class": {"cfg_scale": 4.0, "temperature": 1.0, "top_k": 2000},
    "caption": {"cfg_scale": 7.5, "temperature": 1.0, "top_k": 1000},
    "tar": {"cfg_scale": 4.0, "temperature": 1.0},
}


@dataclass(frozen=True)
class Part:
    """One weights file of a family."""

    name: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str] | None = None


def silent(what: str, done: int, total: int) -> None:
    """No progress."""


def convert_llamagen(
    target: str | Path,
    vq: str | Path,
    output: Path,
    *,
    drafter: str | Path | None = None,
    target_size: int | None = None,
    drafter_size: int | None = None,
    heads: int | None = None,
    class_names: list[str] | None = None,
    text_encoder: str = ENCODER,
    dtype: torch.dtype | None = None,
    report: Report = silent,
) -> Path:
    """Make a family of LlamaGen checkpoints, class- or text-conditional.

    Args:
        target, drafter: AR files (see `container`), or folders or repositories that hold them; without a drafter the
            family decodes on one grid.
        vq: their image tokenizer.
        output: the folder to make.
        target_size, drafter_size: pixels a side, where neither the file's arguments nor its name tell.
        heads: attention heads of models whose sizes are not those of a released one.
        class_names: a name for each class.
        text_encoder: of captions, a folder or repository for transformers.
        dtype: of the stored AR weights; None keeps the file's.
        report: told of the progress.

    Raises:
        ValueError: a file is not what it should be (all that is missing or mis-shaped is named), or `output` exists.
    """
    output = check_output(output)
    report("reading", 0, 3)
    tokenizer_values, tokenizer = translate_vq(
        read_checkpoint(locate(vq, ("vq_ds16_t2i.pt", "vq_ds16_c2i.pt"), "--vq"))
    )
    patch = 2 ** (len(tokenizer_values["channels"]) - 1)
    given = [("--drafter", drafter, drafter_size, "t2i_XL_stage1_256.pt")] if drafter is not None else []
    given.append(("--target", target, target_size, "t2i_XL_stage2_512.pt"))
    models = []
    for i, (option, source, size, name) in enumerate(given):
        report("reading", i + 1, 3)
        checkpoint = read_checkpoint(locate(source, (name,), option))
        check_is_ar(checkpoint)
        pixels = size or image_size(checkpoint)
        if pixels is None:
            raise ValueError(
                f"{option} {checkpoint.path}: neither its arguments nor its name tell the pictures' size; "
                f"give {option}-size, such as {option}-size 256"
            )
        models.append(ar_part(checkpoint, grid_of(pixels, patch, option), heads, dtype))
    first = models[-1][0]
    if any(values["condition"] != first["condition"] for values, _ in models):
        raise ValueError("--drafter and --target are one conditioned on classes and one on captions: a family is alike")
    conditioner: dict[str, Any] = {"kind": "classes", "n_classes": first["n_classes"], "names": class_names or []}
    if first["condition"] == "caption":
        conditioner = {
            "kind": "captions",
            "length": first["cond_len"],
            "dim": first["cond_dim"],
            "encoder": text_encoder,
        }
    report("reading", 3, 3)
    return assemble(
        output,
        SAMPLING[first["condition"]],
        {"kind": "vq", **tokenizer_values},
        conditioner,
        models,
        {"tokenizer": tokenizer},
        report,
    )


def convert_tar(
    ar: Mapping[int, str | Path],
    ta_tok: str | Path,
    vq: str | Path,
    output: Path,
    *,
    llm: str | None = None,
    prefix: int | None = None,
    heads: int | None = None,
    dtype: torch.dtype | None = None,
    report: Report = silent,
) -> Path:
    """Make a family of Tar's AR de-tokenizers.

    Args:
        ar: AR files by pixels a side.
        ta_tok: the text-aligned tokenizer; only its decode path is kept.
        vq: the image tokenizer, LlamaGen's VQ-16.
        output: the folder to make.
        llm: folder or repository of the language model; without one, prompts need precomputed conditions.
        prefix: features a picture, 729, 169 or 81; None is what the AR files were made for.
        heads, dtype, report: as for `convert_llamagen`.

    Raises:
        ValueError: as `convert_llamagen`.
    """
    output = check_output(output)
    total = len(ar) + 2
    report("reading", 0, total)
    tokenizer_values, tokenizer = translate_vq(read_checkpoint(locate(vq, ("vq_ds16_t2i.pt",), "--vq")))
    report("reading", 1, total)
    ta_values, ta_tensors = translate_ta_tok(read_checkpoint(locate(ta_tok, ("ta_tok.pth",), "--ta-tok")))
    patch = 2 ** (len(tokenizer_values["channels"]) - 1)
    models = []
    for i, (pixels, source) in enumerate(sorted(ar.items())):
        report("reading", i + 2, total)
        option = f"--ar {pixels}="
        checkpoint = read_checkpoint(locate(source, (f"ar_dtok_lp_{pixels}px.pth",), option))
        values, part = ar_part(checkpoint, grid_of(pixels, patch, option), heads, dtype, prefix)
        if values["cond_dim"] != ta_values["dim"]:
            raise ValueError(
                f"{checkpoint.path} takes features of width {values['cond_dim']}, {ta_tok} gives {ta_values['dim']}"
            )
        models.append((values, part))
    lengths = sorted({values["cond_len"] for values, _ in models})
    if len(lengths) != 1:
        raise ValueError(f"the AR files were made for prefixes of {lengths} features: choose one with --prefix")
    conditioner = {"kind": "dialect", "length": lengths[0], "ta_tok": ta_values, "llm": llm}
    parts = {"tokenizer": tokenizer, "ta_tok": ta_tensors}
    report("reading", total, total)
    tokens = {"kind": "vq", **tokenizer_values}
    return assemble(output, SAMPLING["tar"], tokens, conditioner, models, parts, report)


def check_output(output: Path) -> Path:
    """The folder to make; ValueError when it is there already: nothing is read before that is known."""
    output = expanded(output)
    if output.exists():
        raise ValueError(f"{output} exists already; choose a new folder or remove it")
    return output


def image_size(checkpoint: Checkpoint) -> int | None:
    """Pixels a side that a model was trained for, by its arguments or its name."""
    size = checkpoint.args.get("image_size")
    if isinstance(size, int):
        return size
    found = re.findall(r"(?<!\d)(256|384|512|1024)(?!\d)", checkpoint.path.stem)
    return int(found[-1]) if found else None


def grid_of(pixels: int, patch: int, option: str) -> int:
    if pixels < patch or pixels % patch:
        raise ValueError(f"{option}: pictures of {pixels} px are no whole number of {patch}-px tokens")
    return pixels // patch


def ar_part(
    checkpoint: Checkpoint, grid: int, heads: int | None, dtype: torch.dtype | None, prefix: int | None = None
) -> tuple[dict[str, Any], Part]:
    """Configuration, with its kind, and weights of an AR checkpoint, checked against each other."""
    check_is_ar(checkpoint)
    t = checkpoint.tensors
    layers = count_parts(checkpoint.path, t, "layers.")
    known = "n_head" in checkpoint.args or (layers, len(t["norm.weight"])) in HEADS
    kind, values, tensors = translate(checkpoint, None if known else heads, grid)
    if prefix is not None:
        if prefix not in PREFIXES or kind != "ar-dtok":
            raise ValueError(f"--prefix must be one of {', '.join(map(str, PREFIXES))}, got {prefix}")
        values = {**values, "cond_len": prefix}
    tensors = {k: v if dtype is None or not v.is_floating_point() else v.to(dtype) for k, v in tensors.items()}
    values = {"kind": kind, **values}
    return values, Part("", tensors, {METADATA: json.dumps(values)})


def assemble(
    output: Path,
    sampling: dict[str, Any],
    tokenizer: dict[str, Any],
    conditioner: dict[str, Any],
    models: list[tuple[dict[str, Any], Part]],
    others: dict[str, dict[str, Tensor]],
    report: Report,
) -> Path:
    """Write the folder, which appears whole or not at all."""
    metadata = {
        "format": FORMAT,
        "name": output.name,
        "sampling": sampling,
        "calibration": {},
        "tokenizer": tokenizer,
        "conditioner": conditioner,
        "models": [values for values, _ in models],
        "resamplers": [],
    }
    with torch.device("meta"):
        family = Family.build(metadata)
    files = list(family.describe()["models"])
    parts = [Part(name, tensors) for name, tensors in others.items()]
    parts += [Part(f["file"], part.tensors, part.metadata) for f, (_, part) in zip(files, models, strict=True)]
    with new_folder(output) as folder:
        for i, part in enumerate(parts):
            report("writing", i, len(parts))
            write_weights(folder, part.name, part.tensors, part.metadata)
        write_json(folder, family.describe())
        report("writing", len(parts), len(parts))
    return output
