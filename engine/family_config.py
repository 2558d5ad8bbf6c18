"""What family.json says of a family: its name, its settings, its parts, and facts that the engine only carries."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from . import atomic
from .arguments import read, spelled
from .lock import locked
from .paths import expanded
from .sampling import SamplingParams

# Format 1 had one AR model and a vocabulary of phrases; it is still read.
FORMAT = 2
FILE = "family.json"
LARGEST = 4 << 20  # bytes of a family.json: class names of ImageNet take 30 KB
LARGEST_GRID = 4096  # tokens a side; no weights bound it, where positions are computed
PARTS = ("tokenizer", "conditioner", "models", "resamplers", "eagle", "srgan")
FACTS = ("scenes", "photos")
OWN = ("format", "name", "sampling", "calibration", "default", "decoder")
# What a part may raise when it is built from values that are not as they should be.
OBSCURE = (KeyError, TypeError, AttributeError, RuntimeError, OverflowError, IndexError, ValueError, AssertionError)


@dataclass(frozen=True)
class Calibration:
    """A calibrated setting. `rejection` is the share that tau rejects on the calibration drafts, `wanted` the goal.

    `window`, `draft_guesses` and `draft_window` are stored with it for `MuloSD` and `DraftOnly`; None leaves them
    serial. `closeness` is that of `MuloSD`; None is off.
    """

    scale: int
    upsampler: str
    pool: int
    radius: int
    tau: float
    rejection: float = math.nan
    wanted: float = math.nan
    prompts: int = 0
    window: int | None = None
    draft_guesses: int | None = None
    draft_window: int | None = None
    closeness: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.tau < math.inf:
            raise ValueError(f"tau must be 0 or more, got {self.tau}")
        if self.scale < 2 or self.pool < 1 or self.radius < 0:
            raise ValueError(
                f"scale must be at least 2, pool 1 and radius 0, got {self.key}, {self.pool}, {self.radius}"
            )

    @property
    def key(self) -> str:
        """What it is a calibration for."""
        return f"{self.scale}-{self.upsampler}"

    @classmethod
    def from_dict(cls, values: Any, where: str) -> Calibration:
        """From its fields, or from `decoder` ("mulo:scale=4:tau=0.02:…") and the figures; ValueError names the key."""
        given = dict(mapping(values, where))
        if "decoder" in given:
            given = {**settings_of(given.pop("decoder"), f"{where}.decoder"), **given}
        types = {f.name: str(f.type) for f in fields(cls)}
        needed = ("scale", "upsampler", "pool", "radius", "tau")
        check_keys(given, types, needed, where)
        checked: dict[str, Any] = {k: read(f"{where}.{k}", v, types[k]) for k, v in given.items()}
        return cls(**checked)

    def to_dict(self) -> dict[str, Any]:
        """As family.json holds it."""
        values = asdict(self)
        figures = {key: values.pop(key) for key in ("rejection", "wanted", "prompts")}
        known = {key: value for key, value in figures.items() if not math.isnan(value)}
        return {"decoder": text_of(values), **known}


@dataclass(frozen=True)
class FamilyConfig:
    """The settings of a family.

    Args:
        name: of the family.
        sampling: its default sampling parameters.
        scale, upsampler: what `MuloSD` and `DraftOnly` take where none is asked for; None leaves it to the parts.
        decoder: the text of the decoder that is used where none is asked for; None leaves it to
            `decoding.default.default_decoder`.
        calibrations: settings of `MuloSD` by "SCALE-UPSAMPLER".
        facts: what the family was made of, under `scenes` or `photos`; the engine only carries them, `mulosd.data`
            knows what they mean.
    """

    name: str
    sampling: SamplingParams = field(default_factory=SamplingParams)
    scale: int | None = None
    upsampler: str | None = None
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    decoder: str | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FamilyConfig:
        """From the contents of a family.json, whose parts it passes over; ValueError names the key that is wrong."""
        known = (*OWN, *PARTS, *FACTS)
        check_keys(values, known, ("name",), "")
        if not isinstance(values["name"], str) or not values["name"].isprintable() or not values["name"]:
            raise ValueError(f"name must be a text of printable characters, got {values['name']!r}")
        sampling = mapping(values.get("sampling", {}), "sampling")
        types = {f.name: str(f.type) for f in fields(SamplingParams)}
        check_keys(sampling, types, (), "sampling")
        default = values.get("default", {})
        if isinstance(default, str):
            default = settings_of(default, "default")
        check_keys(mapping(default, "default"), ("scale", "upsampler"), (), "default")
        found = [
            Calibration.from_dict(c, f"calibration.{key}")
            for key, c in mapping(values.get("calibration", {}), "calibration").items()
        ]
        for key in FACTS:
            mapping(values.get(key, {}), key)
        drawn: dict[str, Any] = {k: read(f"sampling.{k}", v, types[k]) for k, v in sampling.items()}
        scale, upsampler = default.get("scale"), default.get("upsampler")
        return cls(
            values["name"],
            SamplingParams(**drawn),
            None if scale is None else int(str(read("default.scale", scale, "int"))),
            None if upsampler is None else str(read("default.upsampler", upsampler, "str")),
            {c.key: c for c in found},
            {key: values[key] for key in FACTS if key in values},
            None if values.get("decoder") is None else str(read("decoder", values["decoder"], "str")),
        )

    def to_dict(self) -> dict[str, Any]:
        """As family.json holds it, without the parts."""
        usual = SamplingParams().to_dict()
        sampling = {k: v for k, v in self.sampling.to_dict().items() if v != usual[k]}
        default = {k: v for k, v in (("scale", self.scale), ("upsampler", self.upsampler)) if v is not None}
        return {
            "format": FORMAT,
            "name": self.name,
            "sampling": sampling,
            "calibration": {key: c.to_dict() for key, c in self.calibrations.items()},
            **({"default": text_of(default)} if default else {}),
            **({"decoder": self.decoder} if self.decoder else {}),
            **self.facts,
        }


def settings_of(text: Any, where: str) -> dict[str, Any]:
    """The settings of a decoder text of `mulo`, as texts; ValueError when it is not one."""
    if not isinstance(text, str) or text.partition(":")[0] != "mulo":
        raise ValueError(f"{where} must be the text of a decoder, such as 'mulo:scale=4:tau=0.02', got {text!r}")
    pairs = [part.partition("=") for part in text.split(":")[1:]]
    return {key: None if value == "none" else value for key, _, value in pairs}


def text_of(settings: Mapping[str, Any]) -> str:
    """The decoder text of settings of `mulo`; those that are None are left out."""
    return ":".join(["mulo", *(f"{k}={spelled(v)}" for k, v in settings.items() if v is not None)])


def mapping(values: Any, where: str) -> Mapping[str, Any]:
    """Values that must be an object of JSON."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where or 'it'} must be an object {{…}}, got {type(values).__name__}")
    return values


def check_keys(values: Mapping[str, Any], known: Any, needed: Any, where: str) -> None:
    """ValueError for keys that nobody knows, or that are missing."""
    at = f"{where} " if where else ""
    unknown = [key for key in values if key not in known]
    if unknown:
        raise ValueError(f"{at}has the unknown key {unknown[0]!r}; possible are {', '.join(known)}")
    missing = [key for key in needed if key not in values]
    if missing:
        raise ValueError(f"{at}lacks the key {missing[0]!r}")


def read_json(folder: Path) -> dict[str, Any]:
    """The contents of a folder's family.json as this version writes it.

    Raises:
        ValueError: the file is no JSON object, or of a format that this version does not know; the file is named.
    """
    path = expanded(folder) / FILE
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, more than a family.json can need ({LARGEST:,})")
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error.msg} in line {error.lineno}, column {error.colno}") from error
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path} is no JSON that can be read: {error}") from error
    with told(path):
        found = mapping(values, "the file")
        return upgraded(dict(found))


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """The contents of a family.json in the present format."""
    if values.get("format") == FORMAT:
        return values
    if values.get("format") != 1:
        raise ValueError(f"it has format {values.get('format')!r}; this version reads formats 1 and {FORMAT}")
    old = ("tokenizer", "text", "vocabulary", "ar")
    for key in old:
        check_keys(values, values, (key,), "")
    return {
        **{k: v for k, v in values.items() if k not in old},
        "format": FORMAT,
        "tokenizer": {"kind": "tokenizer", **mapping(values["tokenizer"], "tokenizer")},
        "conditioner": {"kind": "phrases", "text": values["text"], "vocabulary": values["vocabulary"]},
        "models": [{"kind": "transformer", "file": "ar", **mapping(values["ar"], "ar")}],
    }


def change(folder: Path, update: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """Change a folder's family.json in place, whole or not at all; changes of several processes follow one another.

    Args:
        folder: of the family.
        update: from the present contents to the keys that change.
    """
    with locked(folder, "a change of the family in", wait=True):
        values = read_json(folder)
        write_json(folder, {**values, **update(values)})


def write_json(folder: Path, values: Mapping[str, Any]) -> None:
    """Write a folder's family.json, whole or not at all."""
    atomic.write_json(folder / FILE, values)


@contextmanager
def told(path: Path, part: str = "") -> Iterator[None]:
    """Errors of what a file holds, in one line that names it and the part."""
    try:
        yield
    except OBSCURE as error:
        where = f"{path}: {part}" if part else str(path)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, KeyError):
            reason = f"lacks the key {error}"
        elif isinstance(error, TypeError) and (key := re.search(r"unexpected keyword argument ('.*?')", reason)):
            reason = f"has the unknown key {key[1]}"
        elif isinstance(error, TypeError) and (key := re.search(r"missing \d+ required .*?arguments?: (.*)", reason)):
            reason = f"lacks the key {key[1]}"
        raise ValueError(reason if str(path) in reason else f"{where}: {reason}") from error


def too_large(side: Any) -> bool:
    return isinstance(side, (int, float)) and side > LARGEST_GRID


def check_numbers(values: Any, where: str, depth: int, limit: int) -> None:
    """ValueError for counts of layers that the weights cannot hold, for sizes beyond reason, and for what is no number.

    Args:
        values: of a part, nested.
        where: its name.
        depth: the most layers that there can be.
        limit: the largest size.
    """
    if isinstance(values, Mapping):
        for key, value in values.items():
            layers = key in ("n_layers", "blocks", "decoder_blocks", "encoder_blocks", "num_layers")
            if layers and isinstance(value, int) and value > depth:
                raise ValueError(f"{where}.{key} is {value}, and the weights hold {depth} tensors")
            if key == "grids" and isinstance(value, (list, tuple)) and any(map(too_large, value)):
                raise ValueError(f"{where}.{key} must be token sides up to {LARGEST_GRID}, got {value}")
            check_numbers(value, f"{where}.{key}", depth, limit)
    elif isinstance(values, (list, tuple)):
        if len(values) > max(depth, 1) and not all(isinstance(value, str) for value in values):
            raise ValueError(f"{where} lists {len(values):,} parts, and the weights hold {depth} tensors")
        for value in values:
            check_numbers(value, where, depth, limit)
    elif isinstance(values, (int, float)) and not isinstance(values, bool) and not abs(values) <= limit:
        raise ValueError(f"{where} must be a number up to {limit:,}, got {values}")
