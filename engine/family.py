"""A family: models of several scales that share one tokenizer, as a folder of safetensors and a family.json."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..kernels.upsample_pool import neighbours
from .models.layout import lay_out_linears
from .models.text import TextEncoder, TextEncoderConfig, Vocabulary
from .models.tokenizer import Tokenizer, TokenizerConfig
from .models.transformer import Transformer, TransformerConfig
from .models.upsampler import LatentResampler, ResamplerConfig
from .sampling import SamplingParams

FORMAT = 1


def bundled_folder() -> Path:
    """Folder of the families that ship with the package."""
    return Path(str(files("mulosd.families")))


def list_families() -> list[str]:
    """Names of the bundled families."""
    folder = bundled_folder()
    return sorted(p.parent.name for p in folder.glob("*/family.json"))


class Family:
    """Tokenizer, AR transformer (all grids), text encoder and latent resamplers of one family.

    Attributes:
        metadata: the contents of family.json; `calibration` and `sampling` hold the family's defaults.
        path: the folder it was loaded from, or None.
    """

    def __init__(
        self,
        metadata: dict[str, Any],
        tokenizer: Tokenizer,
        text: TextEncoder,
        ar: Transformer,
        resamplers: dict[tuple[int, int], LatentResampler],
        vocabulary: Vocabulary,
        path: Path | None = None,
    ) -> None:
        self.metadata, self.vocabulary, self.path = metadata, vocabulary, path
        self.tokenizer, self.text, self.ar, self.resamplers = tokenizer, text, ar, resamplers
        self._neighbours: dict[int, Tensor] = {}
        self._null: Tensor | None = None
        for module in (tokenizer, text, ar, *resamplers.values()):
            module.eval().requires_grad_(False)

    @property
    def name(self) -> str:
        return str(self.metadata["name"])

    @property
    def grids(self) -> tuple[int, ...]:
        """Token side lengths, ascending; the last one is the target."""
        return tuple(sorted(self.ar.config.grids))

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
        return self.ar.output.weight.device

    def drafter_grid(self, scale: int) -> int:
        """Grid of the drafter for ratio r; ValueError names the possible ratios."""
        if scale not in self.scales:
            raise ValueError(
                f"family {self.name!r} has no scale {scale}; it decodes with scale "
                f"{' or '.join(map(str, self.scales)) or '(none: it has one grid)'}"
            )
        return self.grids[-1] // scale

    def resampler(self, source: int, target: int) -> LatentResampler:
        """The latent resampler between two grids; ValueError lists those that exist."""
        if (source, target) not in self.resamplers:
            have = ", ".join(f"{a}->{b}" for a, b in self.resamplers) or "none"
            raise ValueError(
                f"family {self.name!r} has no latent resampler {source}->{target} (it has: {have}); "
                f"train one, or use the pixel up-sampler"
            )
        return self.resamplers[source, target]

    def neighbours(self, k: int) -> Tensor:
        """The k nearest codes of every code, int32 [V, k]; searched once, which takes seconds in a large codebook."""
        if k not in self._neighbours:
            self._neighbours[k] = neighbours(self.tokenizer.codebook, k)
        return self._neighbours[k]

    def parameters(self) -> dict[str, int]:
        """Number of parameters by part."""

        def count(*modules: nn.Module) -> int:
            return sum(t.numel() for m in modules for t in m.state_dict().values())

        return {
            "tokenizer": count(self.tokenizer),
            "text": count(self.text),
            "ar": count(self.ar),
            "resamplers": count(*self.resamplers.values()),
        }

    def to(self, device: str | torch.device, dtype: torch.dtype = torch.float32) -> Family:
        """Move every part to a device; the AR model and the text encoder also to `dtype`."""
        self.ar.to(device, dtype)
        self.text.to(device, dtype)
        for module in (self.tokenizer, *self.resamplers.values()):
            module.to(device)
        self._neighbours.clear()
        self._null = None
        lay_out_linears(self.ar, inputs_first=self.device.type == "cpu")
        return self

    def features(self, prompts: list[str]) -> Tensor:
        """Condition features [B, cond_len, cond_dim] of prompts."""
        length = self.ar.config.cond_len
        ids = [self.vocabulary.encode(p, length) for p in prompts]
        return self._encode(torch.tensor(ids, device=self.device))

    def null_features(self, batch: int) -> Tensor:
        """Features of the unconditional branch [B, cond_len, cond_dim]."""
        if self._null is None:
            ids = torch.tensor([self.vocabulary.null(self.ar.config.cond_len)], device=self.device)
            self._null = self._encode(ids)
        return self._null.expand(batch, -1, -1)

    def _encode(self, ids: Tensor) -> Tensor:
        features: Tensor = self.text(ids)
        return features

    def save(self, folder: Path) -> Path:
        """Write the family to a new folder (see `write`); the folder appears whole or not at all."""
        with new_folder(folder) as temporary:
            self.write(temporary)
        return folder

    def write(self, folder: Path) -> None:
        """Write family.json and the weights into an existing folder, in float16 but for the tokenizer's encoder."""
        metadata = {
            **self.metadata,
            "format": FORMAT,
            "tokenizer": {**self.tokenizer.config.__dict__, "channels": list(self.tokenizer.config.channels)},
            "text": dict(self.text.config.__dict__),
            "ar": self.ar.config.to_dict(),
            "resamplers": [m.config.to_dict() for m in self.resamplers.values()],
            "vocabulary": self.vocabulary.to_dict(),
        }
        for name, module in self._parts().items():
            state = module.state_dict()
            # What decides which token a picture gets is not rounded: near codes differ by less than float16 can tell,
            # and an encoder that differs from the one the AR model was trained with speaks another language.
            kept = {k for k in state if name == "tokenizer" and k.startswith(("encoder.", "codebook"))}
            kept |= {k for k in state if k.endswith("counts")}
            tensors = {k: v if k in kept or not v.is_floating_point() else v.half() for k, v in state.items()}
            path = folder / f"{name}.safetensors"
            save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, path)
            path.chmod(0o644)  # safetensors writes for the owner alone
        (folder / "family.json").write_text(json.dumps(metadata, indent=1) + "\n")

    def _parts(self) -> dict[str, nn.Module]:
        resamplers = nn.ModuleDict({m.config.name: m for m in self.resamplers.values()})
        return {"tokenizer": self.tokenizer, "text": self.text, "ar": self.ar, "resamplers": resamplers}

    @classmethod
    def load(cls, family: str | Path) -> Family:
        """Load a bundled family by name, or a family folder.

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
        metadata = json.loads((folder / "family.json").read_text())
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{folder} has format {metadata.get('format')}; this version reads format {FORMAT}")
        resamplers = [LatentResampler(ResamplerConfig(**r)) for r in metadata["resamplers"]]
        loaded = cls(
            metadata,
            Tokenizer(TokenizerConfig.from_dict(metadata["tokenizer"])),
            TextEncoder(TextEncoderConfig.from_dict(metadata["text"])),
            Transformer(TransformerConfig.from_dict(metadata["ar"])),
            {(m.config.source, m.config.target): m for m in resamplers},
            Vocabulary.from_dict(metadata["vocabulary"]),
            folder,
        )
        for name, module in loaded._parts().items():
            file = folder / f"{name}.safetensors"
            if not file.is_file():
                raise ValueError(f"{folder} is not a whole family: {file.name} is missing")
            try:
                module.load_state_dict({k: v.float() for k, v in load_file(file).items()})
            except RuntimeError as error:
                raise ValueError(f"{file} does not fit family.json: {error}") from error
        return loaded


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
