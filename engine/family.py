"""A family: models of several scales that share one tokenizer, loaded from a folder and saved to one.

What family.json says is in `family_config`, how weights are stored in `weights`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..kernels.upsample_pool import neighbours
from .arguments import shown
from .conditioning import CONDITIONERS, Condition, Conditioner, PhraseConditioner
from .family_config import (
    FILE,
    PARTS,
    Calibration,
    FamilyConfig,
    change,
    check_keys,
    check_numbers,
    mapping,
    read_json,
    told,
    write_json,
)
from .lock import locked
from .models.ar_model import ARModel
from .models.eagle import EagleConfig, EagleDrafter
from .models.kinds import AR_MODELS, TOKENIZERS, ImageTokenizer, build, kind_of
from .models.layers import Block
from .models.quantized import QuantizedLinear, checked_kind
from .models.srgan import SuperResolver, SuperResolverConfig
from .models.text import TextEncoder, Vocabulary
from .models.upsampler import LatentResampler, ResamplerConfig
from .paths import expanded
from .sampling import SamplingParams
from .weights import (
    check_shapes,
    new_folder,
    read_metadata,
    read_part,
    read_shapes,
    save_part,
    weights_file,
    write_weights,
)


def bundled_folder() -> Path:
    """Folder of the families that ship with the package."""
    return Path(str(files("mulosd.families")))


# Parts whose files say themselves what they hold: each can be replaced in one step.
SELF_TOLD = ("resamplers", "eagle")
# Names are shown whole up to here; no file system takes longer ones.
LONGEST_PATH = 4096


def list_families() -> list[str]:
    """Names of the bundled families."""
    folder = bundled_folder()
    return sorted(p.parent.name for p in folder.glob("*/family.json"))


def there(file: Path) -> bool:
    """Whether there is a file; a name that no file can have is none."""
    try:
        return file.is_file()
    except OSError:
        return False


class Family:
    """Image tokenizer, AR models by grid, conditioner, latent resamplers and feature drafter of one family.

    Args:
        config: its name, settings and facts.
        tokenizer: image <-> tokens.
        conditioner: prompts to conditions.
        models: one AR model for several grids, or one for each; all of one vocabulary.
        resamplers: learned latent up- and down-samplers by (source, target) grid.
        path: the folder it was loaded from, or None.
        eagle: the drafter of `decoding.Eagle`, or None: most families have none.
        srgan: the network of the up-sampler "srgan", or None.

    Raises:
        ValueError: the models do not share the tokenizer's codebook, or two serve the same grid.
    """

    def __init__(
        self,
        config: FamilyConfig,
        tokenizer: nn.Module,
        conditioner: Conditioner,
        models: list[ARModel],
        resamplers: dict[tuple[int, int], LatentResampler],
        path: Path | None = None,
        eagle: EagleDrafter | None = None,
        srgan: SuperResolver | None = None,
    ) -> None:
        self.config, self.path = config, path
        self.tokenizer = cast("ImageTokenizer", tokenizer)
        self.conditioner, self.models, self.resamplers = conditioner, models, resamplers
        self.eagle, self.srgan = eagle, srgan
        # How the weights of the layers are held; None is in the type of the model.
        self.quantization: str | None = None
        self._by_grid: dict[int, ARModel] = {}
        for model in models:
            if model.config.vocab_size != self.tokenizer.config.codebook_size:
                raise ValueError(
                    f"the AR model has a vocabulary of {model.config.vocab_size} tokens, the image tokenizer "
                    f"{self.tokenizer.config.codebook_size} codes: they do not belong together"
                )
            for grid in model.config.grids:
                if grid in self._by_grid:
                    raise ValueError(f"two models of the family serve the {grid}x{grid} grid; one is enough")
                self._by_grid[grid] = model
        if not self._by_grid:
            raise ValueError("a family needs at least one AR model that serves a grid")
        self._neighbours: dict[int, Tensor] = {}
        self._null: Tensor | None = None
        for module in self._parts().values():
            module.eval().requires_grad_(False)

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def grids(self) -> tuple[int, ...]:
        """Token side lengths, ascending; the last one is the target."""
        return tuple(sorted(self._by_grid))

    def model(self, grid: int) -> ARModel:
        """The AR model of a grid; ValueError lists the grids."""
        if grid not in self._by_grid:
            raise ValueError(f"family {self.name!r} has no {grid}x{grid} grid; it has {list(self.grids)}")
        return self._by_grid[grid]

    @property
    def ar(self) -> ARModel:
        """The AR model of the target grid."""
        return self._by_grid[self.grids[-1]]

    @property
    def vocabulary(self) -> Vocabulary:
        """Phrases that the family knows; empty for one that takes free text or classes."""
        return self.conditioner.vocabulary if isinstance(self.conditioner, PhraseConditioner) else Vocabulary({})

    @property
    def text(self) -> TextEncoder:
        """The text encoder of a family of phrases; ValueError for others."""
        if not isinstance(self.conditioner, PhraseConditioner):
            raise ValueError(f"family {self.name!r} has no text encoder of its own ({self.conditioner.kind})")
        return self.conditioner.text

    @property
    def patch(self) -> int:
        """Pixels a token side."""
        return self.tokenizer.config.patch

    @property
    def image_sizes(self) -> tuple[int, ...]:
        return tuple(g * self.patch for g in self.grids)

    @property
    def scales(self) -> tuple[int, ...]:
        """Ratios r = target / drafter that the family can decode with, ascending."""
        target = self.grids[-1]
        # A grid that the model itself writes before the image is the only draft that the image goes with.
        first = self.ar.layout(target).grids[:-1]
        return tuple(sorted(target // g for g in first or self.grids[:-1] if target % g == 0))

    @property
    def scale(self) -> int | None:
        """The ratio that is used where none is asked for: the family's own choice, or else its largest; None without
        any."""
        return self.config.scale or (self.scales[-1] if self.scales else None)

    @property
    def sampling(self) -> SamplingParams:
        """The family's default sampling parameters."""
        return self.config.sampling

    @property
    def device(self) -> torch.device:
        return self.ar.device

    def drafter_grid(self, scale: int) -> int:
        """Grid of the drafter for ratio r; ValueError names the possible ratios."""
        if scale not in self.scales:
            raise ValueError(
                f"family {self.name!r} has no scale {scale}; it decodes with scale "
                f"{' or '.join(map(str, self.scales)) or '(none: no grid of it divides the largest)'}"
            )
        return self.grids[-1] // scale

    def resampler(self, source: int, target: int) -> LatentResampler:
        """The latent resampler between two grids; ValueError lists those that exist."""
        if (source, target) not in self.resamplers:
            have = ", ".join(f"{a}->{b}" for a, b in self.resamplers) or "none"
            raise ValueError(
                f"family {self.name!r} has no latent resampler {source}->{target} (it has: {have}); "
                f"train one (mulosd train upsampler --family), or use the pixel up-sampler (upsampler=pixel)"
            )
        return self.resamplers[source, target]

    def eagle_drafter(self, grid: int) -> EagleDrafter:
        """The feature drafter for a grid; ValueError says which commands make one."""
        have = () if self.eagle is None else self.eagle.config.grids
        if self.eagle is None or grid not in have:
            raise ValueError(
                f"family {self.name!r} has no feature drafter for the {grid}x{grid} grid (it has: "
                f"{', '.join(map(str, have)) or 'none'}): train one with `mulosd train eagle`, then add it to the "
                f"family with `mulosd train attach`"
            )
        return self.eagle

    @property
    def super_resolver(self) -> SuperResolver:
        """The network of the up-sampler "srgan"; ValueError says how to get one."""
        if self.srgan is None:
            raise ValueError(
                f"family {self.name!r} has no super-resolution network of its own: train one (`mulosd train srgan`), "
                f"or choose another up-sampler"
            )
        return self.srgan

    @property
    def upsampler(self) -> str:
        """The up-sampler that is used where none is asked for: the family's own choice, or else the learned one, if the
        family has it."""
        return self.config.upsampler or ("latent" if self.resamplers else "pixel")

    def calibration(self, scale: int, upsampler: str) -> Calibration | None:
        """What `mulosd calibrate` stored for a ratio and an up-sampler; None where there is nothing."""
        return self.config.calibrations.get(f"{scale}-{upsampler}")

    def neighbours(self, k: int) -> Tensor:
        """Table int32 [V, k] of each code's nearest codes, kept: it takes seconds for a large codebook."""
        if k not in self._neighbours:
            own = getattr(self.tokenizer, "neighbours", None)
            self._neighbours[k] = neighbours(self.tokenizer.codebook, k) if own is None else own(k)
        return self._neighbours[k]

    def parameters(self) -> dict[str, int]:
        """Number of parameters by part."""
        return {name: sum(t.numel() for t in module.state_dict().values()) for name, module in self._parts().items()}

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of all parts, with the AR models and the conditioner in `dtype`; tensors may be on the meta device."""
        exact = {"tokenizer", "resamplers", "srgan"}
        total = 0
        for name, module in self._parts().items():
            size = 4 if name in exact else dtype.itemsize
            own = {id(t) for layer in module.modules() if isinstance(layer, QuantizedLinear) for t in layer.buffers()}
            total += sum(t.numel() * (t.itemsize if id(t) in own else size) for t in tensors_of(module))
        return total

    def quantize(self, kind: str | None) -> Family:
        """Hold the linear layers of the AR models and the feature drafter in 8 bits from now on; None changes nothing.

        Embeddings, norms, output heads, the conditioner, tokenizer and up-samplers stay as they are.

        Args:
            kind: "int8", "fp8" or None.

        Raises:
            ValueError: another kind, or the family is quantised already, to another kind.
        """
        kind = checked_kind(kind)
        if kind is None or kind == self.quantization:
            return self
        if self.quantization is not None:
            raise ValueError(
                f"family {self.name!r} is quantised to {self.quantization} already; load it again for {kind}"
            )
        for model in (*self.models, *([] if self.eagle is None else [self.eagle])):
            for block in model.blocks:
                cast("Block", block).quantize(kind)
        self.quantization = kind
        return self

    def to(self, device: str | torch.device, dtype: torch.dtype = torch.float32) -> Family:
        """Move every part to a device; the AR models and the conditioner also to `dtype`."""
        for model in self.models:
            model.to(device, dtype)
        if self.eagle is not None:
            self.eagle.to(device, dtype)
        self.conditioner.to(torch.device(device), dtype)
        for module in (cast("nn.Module", self.tokenizer), *self.resamplers.values(), self.srgan):
            if module is not None:
                module.to(device)
        self._neighbours.clear()
        self._null = None
        return self

    def check_prompts(self, prompts: Sequence[str]) -> list[str]:
        """See `Engine.check_prompts`; it needs no weights."""
        warnings = []
        for prompt in prompts:
            if not prompt.strip():
                raise ValueError("the prompt is empty; say what to draw, for example 'a cat on a blue background'")
            warning = self.conditioner.check(prompt)
            if warning is not None:
                warnings.append(f"family {self.name!r} {warning}")
        return warnings

    def condition(self, prompts: list[str], seeds: Sequence[int] | None = None) -> Condition:
        """The condition of prompts, see `Conditioner.condition`: some families draw one for each image, by its seed."""
        return self.conditioner.condition(prompts, seeds)

    def features(self, prompts: list[str]) -> Tensor:
        """Condition features [B, cond_len, cond_dim] of prompts."""
        return self.condition(prompts).features

    def null_features(self, batch: int) -> Tensor:
        """Features of the unconditional branch [B, cond_len, cond_dim]."""
        if self._null is None:
            # Kept for training as well, which may not use what was made in inference mode.
            with torch.inference_mode(False), torch.no_grad():
                self._null = self.conditioner.null(1)
        return self._null.expand(batch, *self._null.shape[1:])

    def like(self) -> Tensor:
        """Features of the shape and type of one condition."""
        found = self.conditioner.like()
        return self.null_features(1) if found is None else found

    def save(self, folder: Path) -> Path:
        """Write the family to a new folder (see `write`); the folder appears whole or not at all."""
        with new_folder(folder) as temporary:
            self.write(temporary)
        return expanded(folder)

    def describe(self) -> dict[str, Any]:
        """What family.json holds."""
        return {
            **self.config.to_dict(),
            "tokenizer": {"kind": kind_of(self.tokenizer, TOKENIZERS), **self.tokenizer.config.to_dict()},
            "conditioner": {"kind": self.conditioner.kind, **self.conditioner.to_dict()},
            "models": [
                {"kind": kind_of(m, AR_MODELS), "file": name, **m.config.to_dict()}
                for name, m in self._models().items()
            ],
            "resamplers": [m.config.to_dict() for m in self.resamplers.values()],
            **({} if self.eagle is None else {"eagle": self.eagle.config.to_dict()}),
            **({} if self.srgan is None else {"srgan": self.srgan.config.to_dict()}),
        }

    def write(self, folder: Path, *, half_encoder: bool = False) -> None:
        """Write family.json and the weights into an existing folder, in float16 but for the tokenizer's codebook and,
        without `half_encoder`, its encoder.

        Raises:
            ValueError: the weights are quantised.
        """
        if self.quantization is not None:
            raise ValueError(
                f"family {self.name!r} is quantised to {self.quantization}, of which folders hold nothing: load it "
                f"without quantization to write it"
            )
        for name, module in self._parts().items():
            own = None
            if name == "resamplers":
                own = resampler_facts(self.resamplers)
            elif name == "eagle" and self.eagle is not None:
                own = eagle_facts(self.eagle)
            save_part(name, module, folder, half_encoder=half_encoder, metadata=own)
        write_json(folder, self.describe())

    def _models(self) -> dict[str, ARModel]:
        """AR models by the name of their file."""
        if len(self.models) == 1:
            return {"ar": self.models[0]}
        return {f"ar-{'-'.join(map(str, m.config.grids))}": m for m in self.models}

    def _parts(self) -> dict[str, nn.Module]:
        parts: dict[str, nn.Module] = {"tokenizer": cast("nn.Module", self.tokenizer)}
        parts |= self.conditioner.weights
        parts |= self._models()
        if self.resamplers:
            parts["resamplers"] = nn.ModuleDict({m.config.name: m for m in self.resamplers.values()})
        if self.eagle is not None:
            parts["eagle"] = self.eagle
        if self.srgan is not None:
            parts["srgan"] = self.srgan
        return parts

    @classmethod
    def load(cls, family: str | Path, *, dtype: torch.dtype = torch.float32, weights: bool = True) -> Family:
        """Load a bundled family by name, or a family folder.

        Args:
            family: name or folder.
            dtype: of the AR models and the conditioner; they are never held in a wider type.
            weights: False leaves all tensors on the meta device: sizes without memory.

        Raises:
            ValueError: no such family, or the folder is not a family, or weights are missing or mis-shaped.
        """
        folder = expanded(family)
        if not there(folder / FILE):
            named = bundled_folder() / str(family)
            if not there(named / FILE):
                if there(folder / "config.json") or there(folder / "model_index.json"):
                    raise ValueError(
                        f"{folder} is a repository of the hub, which draws and is measured, but is not trained here: "
                        f"give the folder of a family, which holds a {FILE}"
                    )
                raise ValueError(
                    f"there is no family {shown(str(family), LONGEST_PATH)}: bundled families are "
                    f"{', '.join(list_families()) or '(none)'}; otherwise give a folder that holds a {FILE}"
                )
            folder = named
        described = read_json(folder)
        with told(folder / FILE):
            check_size(described, folder)
        for part in SELF_TOLD:
            file = folder / f"{part}.safetensors"
            if described.get(part) and file.is_file() and part in (metadata := read_metadata(file)):
                with told(file):
                    described[part] = json.loads(metadata[part])
                    check_size(described, folder)
        with torch.device("meta"):
            loaded = cls.build(described, folder)
        for name, module in loaded._parts().items():
            file = weights_file(folder, name)
            if not weights:
                check_shapes(file, module)
            else:
                read_part(file, module, torch.float32 if name in ("tokenizer", "resamplers", "srgan") else dtype)
        return loaded

    @classmethod
    def build(cls, described: Mapping[str, Any], path: Path | None = None) -> Family:
        """The family that `describe` described, without its weights; ValueError names the part that is wrong."""
        file = (path or Path()) / FILE
        with told(file):
            config = FamilyConfig.from_dict(described)
            check_keys(described, described, ("tokenizer", "conditioner", "models", "resamplers"), "")
        with told(file, "tokenizer"):
            values = dict(mapping(described["tokenizer"], "it"))
            tokenizer = build(TOKENIZERS, chosen(values, TOKENIZERS), values)
        with told(file, "conditioner"):
            values = dict(mapping(described["conditioner"], "it"))
            conditioner = CONDITIONERS[chosen(values, CONDITIONERS)].from_dict(values)
        with told(file, "models"):
            models = []
            for given in described["models"]:
                values = {k: v for k, v in mapping(given, "each").items() if k != "file"}
                models.append(build(AR_MODELS, chosen(values, AR_MODELS), values))
            target = max(models, key=lambda m: max(m.config.grids))
        with told(file, "resamplers"):
            resamplers = [LatentResampler(ResamplerConfig(**mapping(r, "each"))) for r in described["resamplers"]]
        with told(file, "eagle"):
            drafter = described.get("eagle")
            eagle = None if drafter is None else EagleDrafter(EagleConfig(**mapping(drafter, "it")), target)
        with told(file, "srgan"):
            enlarger = described.get("srgan")
            srgan = None if enlarger is None else SuperResolver(SuperResolverConfig(**mapping(enlarger, "it")))
        with told(file):
            pairs = {(m.config.source, m.config.target): m for m in resamplers}
            return cls(config, tokenizer, conditioner, models, pairs, path, eagle, srgan)


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers of a module that its state holds."""
    yield from module.state_dict(keep_vars=True).values()


def chosen(values: dict[str, Any], kinds: Mapping[str, Any]) -> str:
    """Take the kind of a part out of its values; ValueError lists the kinds."""
    kind = values.pop("kind", None)
    if kind not in kinds:
        raise ValueError(f"kind must be one of {', '.join(kinds)}, got {kind!r}")
    return str(kind)


def check_size(described: Mapping[str, Any], folder: Path) -> None:
    """ValueError for numbers that the files beside cannot hold, before anything is built of them, and for files that
    lie elsewhere."""
    for model in described.get("models", []):
        file = mapping(model, "models").get("file", "ar")
        if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+", file) or file.startswith("."):
            raise ValueError(f"models.file must be the name of a file in the folder, got {file!r}")
    depth = sum(len(read_shapes(file)) for file in sorted(folder.glob("*.safetensors")))
    check_numbers({key: described.get(key) for key in PARTS}, "its part", depth, 1 << 31)


def resampler_facts(resamplers: Mapping[tuple[int, int], LatentResampler]) -> dict[str, str]:
    """What the file of the latent resamplers says of itself."""
    return {"resamplers": json.dumps([m.config.to_dict() for m in resamplers.values()])}


def eagle_facts(drafter: EagleDrafter) -> dict[str, str]:
    """What the file of the feature drafter says of itself."""
    return {"eagle": json.dumps(drafter.config.to_dict())}


def add_eagle(folder: Path, drafter: EagleDrafter) -> Path:
    """Give a family folder a feature drafter, in place of the one that it may have; returns the file written."""
    folder = expanded(folder)
    path = save_part("eagle", drafter, folder, metadata=eagle_facts(drafter))
    change(folder, lambda _: {"eagle": drafter.config.to_dict()})
    return path


def store_calibration(folder: Path, found: Calibration, *, default: bool = False) -> None:
    """Write a calibrated setting to a family's family.json, for its scale and up-sampler; with `default` these become
    what `MuloSD` and `DraftOnly` take where none is asked for."""

    def update(values: dict[str, Any]) -> dict[str, Any]:
        config = FamilyConfig.from_dict(values)
        config = replace(config, calibrations={**config.calibrations, found.key: found})
        return (replace(config, scale=found.scale, upsampler=found.upsampler) if default else config).to_dict()

    change(folder, update)


def store_resamplers(folder: Path, trained: list[LatentResampler]) -> None:
    """Put latent resamplers into a family's folder, in place of those between the same grids."""
    # Two trainings that end at once must not each write what was there before the other.
    with locked(folder, "a change of the up-samplers in", name="resamplers", wait=True):
        family = Family.load(folder)
        kept = family.resamplers | {(m.config.source, m.config.target): m for m in trained}
        modules = nn.ModuleDict({m.config.name: m for m in kept.values()})
        write_weights(expanded(folder), "resamplers", modules.state_dict(), resampler_facts(kept))
        change(folder, lambda _: {"resamplers": [m.config.to_dict() for m in kept.values()]})
