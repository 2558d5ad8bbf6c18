"""A family: models of several scales that share one tokenizer, as a folder of safetensors and a family.json."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..kernels.upsample_pool import neighbours
from .conditioning import CONDITIONERS, Condition, Conditioner, PhraseConditioner
from .models.ar_model import ARModel
from .models.eagle import EagleConfig, EagleDrafter
from .models.kinds import AR_MODELS, TOKENIZERS, ImageTokenizer, build_ar, kind_of
from .models.srgan import SuperResolver, SuperResolverConfig
from .models.text import TextEncoder, Vocabulary
from .models.upsampler import LatentResampler, ResamplerConfig
from .sampling import SamplingParams

# Format 1 had one AR model and a vocabulary of phrases; it is still read.
FORMAT = 2


def bundled_folder() -> Path:
    """Folder of the families that ship with the package."""
    return Path(str(files("mulosd.families")))


def list_families() -> list[str]:
    """Names of the bundled families."""
    folder = bundled_folder()
    return sorted(p.parent.name for p in folder.glob("*/family.json"))


class Family:
    """Image tokenizer, AR models by grid, conditioner, latent resamplers and feature drafter of one family.

    Args:
        metadata: the contents of family.json; `calibration` and `sampling` hold the family's defaults.
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
        metadata: dict[str, Any],
        tokenizer: nn.Module,
        conditioner: Conditioner,
        models: list[ARModel],
        resamplers: dict[tuple[int, int], LatentResampler],
        path: Path | None = None,
        eagle: EagleDrafter | None = None,
        srgan: SuperResolver | None = None,
    ) -> None:
        self.metadata, self.path = metadata, path
        self.tokenizer = cast("ImageTokenizer", tokenizer)
        self.conditioner, self.models, self.resamplers = conditioner, models, resamplers
        self.eagle, self.srgan = eagle, srgan
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
        return str(self.metadata["name"])

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
        return tuple(sorted(target // g for g in self.grids[:-1] if target % g == 0))

    @property
    def scale(self) -> int | None:
        """The ratio that is used where none is asked for: the family's own choice, or else its largest; None without
        any."""
        chosen: int | None = self.metadata.get("default", {}).get("scale")
        return chosen or (self.scales[-1] if self.scales else None)

    @property
    def objects(self) -> list[str]:
        """Objects that the family was trained on, when it was trained on scenes."""
        return list(self.metadata.get("scenes", {}).get("objects", {}))

    @property
    def backgrounds(self) -> list[str]:
        return list(self.metadata.get("scenes", {}).get("backgrounds", {}))

    @property
    def sampling(self) -> SamplingParams:
        """The family's default sampling parameters."""
        return SamplingParams(**self.metadata.get("sampling", {}))

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
                f"train one (mulosd train upsampler --family), or use the pixel up-sampler (--upsampler pixel)"
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
        chosen: str | None = self.metadata.get("default", {}).get("upsampler")
        return chosen or ("latent" if self.resamplers else "pixel")

    def calibration(self, scale: int, upsampler: str) -> dict[str, Any]:
        """Settings that `mulosd calibrate` stored for a ratio and an up-sampler; empty where there are none."""
        stored: dict[str, Any] = self.metadata.get("calibration", {}).get(f"{scale}-{upsampler}", {})
        return stored

    def neighbours(self, k: int) -> Tensor:
        """Table int32 [V, k] of each code's nearest codes, kept: it takes seconds for a large codebook."""
        if k not in self._neighbours:
            self._neighbours[k] = neighbours(self.tokenizer.codebook, k)
        return self._neighbours[k]

    def parameters(self) -> dict[str, int]:
        """Number of parameters by part."""
        return {name: sum(t.numel() for t in module.state_dict().values()) for name, module in self._parts().items()}

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

    def condition(self, prompts: list[str]) -> Condition:
        """The condition of prompts."""
        return self.conditioner.condition(prompts)

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

    def save(self, folder: Path) -> Path:
        """Write the family to a new folder (see `write`); the folder appears whole or not at all."""
        with new_folder(folder) as temporary:
            self.write(temporary)
        return folder

    def describe(self) -> dict[str, Any]:
        """What family.json holds."""
        tokenizer = {"kind": kind_of(self.tokenizer, TOKENIZERS), **self.tokenizer.config.to_dict()}
        return {
            **self.metadata,
            "format": FORMAT,
            "tokenizer": tokenizer,
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
        without `half_encoder`, its encoder."""
        for name, module in self._parts().items():
            save_part(name, module, folder, half_encoder=half_encoder)
        (folder / "family.json").write_text(json.dumps(self.describe(), indent=1) + "\n")

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
        folder = Path(family)
        if not (folder / "family.json").is_file():
            named = bundled_folder() / str(family)
            if not (named / "family.json").is_file():
                raise ValueError(
                    f"there is no family {str(family)!r}: bundled families are "
                    f"{', '.join(list_families()) or '(none)'}; otherwise give a folder that holds a family.json"
                )
            folder = named
        metadata = upgraded(json.loads((folder / "family.json").read_text()), folder)
        with torch.device("meta"):
            loaded = cls.build(metadata, folder)
        for name, module in loaded._parts().items():
            file = folder / f"{name}.safetensors"
            if not file.is_file():
                raise ValueError(f"{folder} is not a whole family: {file.name} is missing")
            if not weights:
                continue
            wanted = torch.float32 if name in ("tokenizer", "resamplers", "srgan") else dtype
            try:
                state = {k: v.to(wanted) if v.is_floating_point() else v for k, v in load_file(file).items()}
                module.load_state_dict(state, assign=True)
            except (RuntimeError, SafetensorError) as error:
                raise ValueError(f"{file} does not fit family.json: {error}") from error
            module.requires_grad_(False)
        return loaded

    @classmethod
    def build(cls, metadata: dict[str, Any], path: Path | None = None) -> Family:
        """The family that `describe` described, without its weights."""
        described = dict(metadata)
        tokenizer, conditioner = dict(described.pop("tokenizer")), dict(described.pop("conditioner"))
        models = [{k: v for k, v in m.items() if k != "file"} for m in described.pop("models")]
        resamplers = [LatentResampler(ResamplerConfig(**r)) for r in described.pop("resamplers")]
        built = [build_ar(m.pop("kind"), m) for m in models]
        drafter, enlarger = described.pop("eagle", None), described.pop("srgan", None)
        target = max(built, key=lambda m: max(m.config.grids))
        module, config = TOKENIZERS[tokenizer.pop("kind")]
        return cls(
            described,
            module(config.from_dict(tokenizer)),
            CONDITIONERS[conditioner.pop("kind")].from_dict(conditioner),
            built,
            {(m.config.source, m.config.target): m for m in resamplers},
            path,
            None if drafter is None else EagleDrafter(EagleConfig(**drafter), target),
            None if enlarger is None else SuperResolver(SuperResolverConfig(**enlarger)),
        )


def upgraded(metadata: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The contents of a family.json as this version writes it; ValueError for a format that it does not know."""
    if metadata.get("format") == FORMAT:
        return metadata
    if metadata.get("format") != 1:
        raise ValueError(f"{folder} has format {metadata.get('format')}; this version reads formats 1 and {FORMAT}")
    rest = {k: v for k, v in metadata.items() if k not in ("tokenizer", "text", "vocabulary", "ar")}
    return {
        **rest,
        "format": FORMAT,
        "tokenizer": {"kind": "tokenizer", **metadata["tokenizer"]},
        "conditioner": {"kind": "phrases", "text": metadata["text"], "vocabulary": metadata["vocabulary"]},
        "models": [{"kind": "transformer", "file": "ar", **metadata["ar"]}],
    }


def write_weights(folder: Path, name: str, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write one part of a family."""
    path = folder / f"{name}.safetensors"
    tensors: dict[str, Tensor] = {}
    stored: set[int] = set()
    for key, value in state.items():
        tensor = value.contiguous().cpu()
        # The format holds no two tensors of one memory, as tied weights of a checkpoint may be.
        tensors[key] = tensor.clone() if tensor.untyped_storage().data_ptr() in stored else tensor
        stored.add(tensor.untyped_storage().data_ptr())
    save_file(tensors, path, metadata)
    path.chmod(0o644)  # safetensors writes for the owner alone


def save_part(name: str, module: nn.Module, folder: Path, *, half_encoder: bool = False) -> None:
    """Write the weights of one part of a family, in float16 but for what may not be rounded."""
    state = module.state_dict()
    # What decides which token a picture gets is not rounded: near codes differ by less than float16 can tell,
    # and an encoder that differs from the one the AR model was trained with speaks another language.
    exact = ("codebook", "quant") if half_encoder else ("encoder.", "codebook", "quant")
    kept = {k for k in state if name == "tokenizer" and k.startswith(exact)}
    kept |= {k for k in state if k.endswith("counts")}
    write_weights(
        folder, name, {k: v if k in kept or not v.is_floating_point() else v.half() for k, v in state.items()}
    )


def add_eagle(folder: Path, drafter: EagleDrafter) -> Path:
    """Give a family folder a feature drafter, in place of the one that it may have; returns the file written."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        save_part("eagle", drafter, Path(temporary))
        path = (Path(temporary) / "eagle.safetensors").replace(folder / "eagle.safetensors")
    update_metadata(folder, eagle=drafter.config.to_dict())
    return path


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends well, and vanishes when it does not."""
    if folder.exists():
        raise ValueError(f"{folder} exists already; choose a new folder or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.replace(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def update_metadata(folder: Path, **changes: Any) -> None:
    """Change keys of a family.json in place, atomically."""
    path = folder / "family.json"
    metadata = {**json.loads(path.read_text()), **changes}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(metadata, indent=1) + "\n")
    temporary.replace(path)


def store_resamplers(folder: Path, trained: list[LatentResampler]) -> None:
    """Put latent resamplers into a family's folder, in place of those between the same grids."""
    family = Family.load(folder)
    kept = family.resamplers | {(m.config.source, m.config.target): m for m in trained}
    modules = nn.ModuleDict({m.config.name: m for m in kept.values()})
    temporary = ".resamplers"
    write_weights(folder, temporary, modules.state_dict())
    (folder / f"{temporary}.safetensors").replace(folder / "resamplers.safetensors")
    update_metadata(folder, resamplers=[m.config.to_dict() for m in kept.values()])
