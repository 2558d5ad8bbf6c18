"""Sampling parameters, and the noise that makes a draw depend on (seed, position, purpose) alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..kernels import philox
from ..kernels.sampling import processed_logits
from .arguments import check_settings, read, shown
from .devices import upload

Purpose = philox.Purpose


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn: guidance, then temperature, top-k, top-p.

    Args:
        cfg_scale: classifier-free guidance; 1 is off (and halves the work). Below 1 it leans to the unconditional
            branch, where LlamaGen's code does not guide at all.
        temperature: 0 is greedy.
        top_k: 0 is off.
        top_p: 1 is off.
        cfg_interval: guide raster positions 0 to `cfg_interval` + 1 alone (LlamaGen's steps count from 0 at position
            1), and draw the rest from the conditional branch; -1 guides all.
        cfg_in_model_dtype: guide and divide by the temperature in the type that the model computes in, as the public
            code of Tar does, instead of in float32.
    """

    cfg_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    cfg_interval: int = -1
    cfg_in_model_dtype: bool = False

    def __post_init__(self) -> None:
        check_settings(self)
        if not math.isfinite(self.cfg_scale) or self.cfg_scale < 0:
            raise ValueError(f"cfg_scale must be 0 or more (1 is off), got {self.cfg_scale}")
        if not math.isfinite(self.temperature) or self.temperature < 0:
            raise ValueError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1] (1 is off), got {self.top_p}")
        if self.cfg_interval < -1:
            raise ValueError(f"cfg_interval must be 0 or more steps, or -1 for all, got {self.cfg_interval}")

    @property
    def guided(self) -> bool:
        """Whether the unconditional branch is needed."""
        return self.cfg_scale != 1.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def changed(self, given: SamplingLike) -> SamplingParams:
        """What an argument means where these are the defaults.

        Args:
            given: parameters, taken as they are; a text such as "cfg_scale=3:top_k=100", or a mapping, which change
                these; None changes nothing.

        Raises:
            ValueError: anything else, an unknown name, or a value that it cannot have.
        """
        if given is None or isinstance(given, SamplingParams):
            return given or self
        if isinstance(given, str):
            given = {key: value for key, _, value in (part.partition("=") for part in given.strip().split(":"))}
        if not isinstance(given, Mapping):
            raise ValueError(
                f"sampling must be SamplingParams, a text such as 'cfg_scale=3:top_k=100', or a mapping, "
                f"got {shown(given)}"
            )
        names = {f.name: type(f.default) for f in fields(self)}
        values: dict[str, Any] = {}
        for name, value in given.items():
            if name not in names:
                raise ValueError(f"sampling has no parameter {shown(name)}; it has {', '.join(names)}")
            values[name] = read(f"sampling {name}", value, names[name].__name__)
        return replace(self, **values)

    def prepare(self, logits: Logits, positions: Sequence[int] | Tensor) -> tuple[Logits, SamplingParams]:
        """Logits [n, V] of raster positions with what the kernels do not know applied, and what is left for them.

        Positions int64 [n] on the device are not looked at by the host.
        """
        uncond = logits.uncond
        if uncond is None or (self.cfg_interval < 0 and not self.cfg_in_model_dtype):
            return logits, self
        last = self.cfg_interval + 1
        if last > 0 and (isinstance(positions, Tensor) or max(positions, default=0) > last):
            where = positions if isinstance(positions, Tensor) else upload(positions, uncond.device)
            # Guidance between equal logits gives those very logits, whatever its scale.
            uncond = torch.where((where <= last)[:, None], uncond, logits.cond)
            logits = Logits(logits.cond, uncond, logits.dtype)
        if not self.cfg_in_model_dtype or logits.uncond is None:
            return logits, self
        cond, uncond = logits.cond.to(logits.dtype), logits.uncond.to(logits.dtype)
        mixed = uncond + (cond - uncond) * self.cfg_scale
        if self.temperature > 0:
            mixed = mixed / self.temperature
        return Logits(mixed.float(), None, logits.dtype), replace(
            self, temperature=1.0 if self.temperature > 0 else 0.0
        )


# What an argument may be that asks for parameters, see `SamplingParams.changed`.
SamplingLike = SamplingParams | str | Mapping[str, Any] | None


@dataclass(frozen=True)
class Logits:
    """Float32 logits of the conditional and, with guidance, the unconditional branch, each [n, V].

    `dtype` is what the model computed them in.
    """

    cond: Tensor
    uncond: Tensor | None
    dtype: torch.dtype = torch.float32

    @staticmethod
    def cat(parts: Sequence[Logits]) -> Logits:
        """One set of rows after the other."""
        if len(parts) == 1:
            return parts[0]
        uncond = [p.uncond for p in parts if p.uncond is not None]
        return Logits(torch.cat([p.cond for p in parts]), torch.cat(uncond) if uncond else None, parts[0].dtype)

    def __len__(self) -> int:
        return len(self.cond)

    def __getitem__(self, index: slice) -> Logits:
        return Logits(self.cond[index], None if self.uncond is None else self.uncond[index], self.dtype)


class Noise:
    """Gumbel noise of one request by raster position, drawn in blocks and kept.

    The draw at a position depends on the request's seed and the purpose only, so neither the batch nor the order of
    positions changes a token.
    """

    def __init__(self, seed: int, vocab: int, purpose: Purpose, device: torch.device, block: int = 64) -> None:
        self.seed, self.vocab, self.purpose, self.device = seed, vocab, purpose, device
        # A block of a large vocabulary is drawn smaller: 4 MiB are enough.
        self.block = max(1, min(block, (1 << 20) // vocab))
        self._blocks: dict[int, Tensor] = {}
        # Logarithms float32 [n, V] of what the probabilities of codes at positions are multiplied by before the draw.
        self.lean: Callable[[Sequence[int]], Tensor] | None = None

    def rows(self, positions: Sequence[int]) -> Tensor:
        """Noise float32 [n, V] of raster positions."""
        if len(positions) == 1:
            index, offset = divmod(positions[0], self.block)
            return self._kept(index)[offset : offset + 1]
        return torch.stack([self._kept(p // self.block)[p % self.block] for p in positions])

    def _kept(self, index: int) -> Tensor:
        if index not in self._blocks:
            positions = torch.arange(index * self.block, (index + 1) * self.block, device=self.device)
            seeds = torch.full_like(positions, self.seed)
            self._blocks[index] = philox.gumbel(seeds, positions, self.vocab, self.purpose)
        return self._blocks[index]


def processed(logits: Logits, params: SamplingParams, positions: Sequence[int]) -> Tensor:
    """Logits float32 [n, V] of what tokens at raster positions are drawn from, given logits [n, V]: after guidance,
    temperature, top-k and top-p. Entries that are dropped are -inf."""
    logits, params = params.prepare(logits, positions)
    return processed_logits(
        logits.cond, logits.uncond, params.cfg_scale, params.temperature, params.top_k, params.top_p
    )
