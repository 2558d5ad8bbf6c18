"""The engine: prompts in, images out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .cache import KVCache
from .conditioning import Condition
from .decoding import Decoder, MuloSD, Outcome
from .dtypes import checked_dtype
from .events import Failed, Finished, Preview
from .family import Family
from .request import Request
from .sampling import SamplingParams
from .scheduler import Scheduler, SchedulerConfig
from .stats import GenerationStats, Progress, Recorder

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class GenerationResult:
    """Images of a call, in the order of the prompts (all images of a prompt together).

    Attributes:
        images: RGB pictures.
        tokens: int64 [B, H, W].
        stats, prompts, seeds: one entry an image.
        warnings: what the family could not understand.
        resampled: bool [B, H, W], the tokens that the target drew anew after verifying a draft; None for decoders that
            do not verify candidates on a grid.
    """

    images: list[Image]
    tokens: Tensor
    stats: list[GenerationStats]
    prompts: list[str]
    seeds: list[int]
    warnings: list[str] = field(default_factory=list)
    resampled: Tensor | None = None


@dataclass(frozen=True)
class Flight:
    """A request with what its statistics need."""

    request: Request
    decoder: Decoder
    begun: float
    previews: bool = False


@dataclass(frozen=True)
class Update:
    """What `Engine.step` and `Engine.stream` report of a request.

    Attributes:
        request: its number.
        kind: "draft" (the draft as a small picture), "level" (a whole grid of a cascade), "band" (verified rows of the
            target grid), "final", or "failed".
        image: the picture of `tokens`.
        tokens: int64 [h, W] on the CPU.
        row: number of the first row of tokens.
        stats: of a final image.
        resampled: of a final image, see `GenerationResult`; bool [H, W] on the CPU.
        error: why a request failed.
    """

    request: int
    kind: str
    image: Image | None = None
    tokens: Tensor | None = None
    row: int = 0
    stats: GenerationStats | None = None
    error: Exception | None = None
    resampled: Tensor | None = None


class Engine:
    """Generates images with the models of one family.

    Args:
        family: a loaded family.
        device: a torch device.
        dtype: "float32" (exact), "bfloat16" or "float16" for the AR model; the tokenizer stays in float32.
        config: limits of what runs at a time.
    """

    def __init__(
        self,
        family: Family,
        *,
        device: str = "cpu",
        dtype: str | torch.dtype = "float32",
        config: SchedulerConfig | None = None,
    ) -> None:
        self.config = config or SchedulerConfig()
        self.caches: dict[tuple[int, bool], KVCache] = {}
        self._flights: dict[int, Flight] = {}
        self.dtype = checked_dtype(dtype)
        try:
            kind = torch.device(device).type
        except RuntimeError as error:
            raise ValueError(f"there is no device {device!r}; use 'cpu', 'cuda' or 'cuda:0'") from error
        if kind == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device {device!r} was asked for, but torch sees no CUDA device; use device='cpu'")
        self.family = family.to(device, self.dtype)
        self.scheduler = Scheduler(self.family, self.config, self.caches)

    @classmethod
    def from_pretrained(
        cls,
        family: str | Path = "emoji",
        *,
        device: str = "cpu",
        dtype: str | torch.dtype = "float32",
        config: SchedulerConfig | None = None,
    ) -> Engine:
        """Load a bundled family by name, or a family folder; ValueError lists what there is."""
        kind = checked_dtype(dtype)
        return cls(Family.load(family, dtype=kind), device=device, dtype=kind, config=config)

    def check_prompts(self, prompts: Sequence[str]) -> list[str]:
        """Warnings for words that the family does not know; ValueError for prompts that ask for nothing."""
        warnings = []
        for prompt in prompts:
            if not isinstance(prompt, str) or not prompt.strip():
                raise ValueError("the prompt is empty; say what to draw, for example 'a cat on a blue background'")
            warning = self.family.conditioner.check(prompt)
            if warning is not None:
                warnings.append(f"family {self.family.name!r} {warning}")
        return warnings

    @torch.inference_mode()
    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        decoder: Decoder | None = None,
        sampling: SamplingParams | None = None,
        seed: int | Sequence[int] = 0,
        num_images: int = 1,
        batch_size: int = 8,
        progress: Callable[[Progress], None] | None = None,
        features: Condition | None = None,
    ) -> GenerationResult:
        """Generate images.

        The picture of a prompt depends on its own seed alone (in float32), not on what else is in the call.

        Args:
            prompts: one or several.
            decoder: how to decode; None is `MuloSD()` with the family's calibrated settings.
            sampling: None takes the family's defaults.
            seed: of every prompt, or one for each; image n of a prompt uses seed + n.
            num_images: images a prompt.
            batch_size: most images decoded together.
            progress: called with each `Progress`.
            features: conditions of the prompts, one each, where they are not to be computed
                (see `Conditioner.precomputed`); the prompts are then names alone.

        Raises:
            ValueError: an empty prompt, or a setting that the family cannot serve (the message says what it can).
        """
        asked = [prompts] if isinstance(prompts, str) else list(prompts)
        if not asked:
            raise ValueError("there is no prompt; give at least one")
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        seeds = [seed] * len(asked) if isinstance(seed, int) else [int(s) for s in seed]
        if len(seeds) != len(asked):
            raise ValueError(f"{len(asked)} prompts need one seed or {len(asked)} seeds, got {len(seeds)}")
        if any(not 0 <= s < 2**63 - num_images for s in seeds):
            raise ValueError(f"seeds must be 0 or more and below 2**63, got {seeds}")
        if features is not None and len(features) != len(asked):
            raise ValueError(f"{len(asked)} prompts need as many precomputed features, got {len(features)}")
        warnings = [] if features is not None else self.check_prompts(asked)
        chosen = (MuloSD() if decoder is None else decoder).resolve(self.family)
        params = self.family.sampling if sampling is None else sampling
        jobs = [(p, s + n) for p, s in zip(asked, seeds, strict=True) for n in range(num_images)]
        given = [None if features is None else features[i : i + 1] for i in range(len(asked))]
        scheduler = Scheduler(self.family, replace(self.config, max_running=batch_size), self.caches)
        flights: dict[int, tuple[int, Flight]] = {}
        for i, (prompt, number) in enumerate(jobs):
            flight = self._flight(prompt, number, chosen, params, progress, given[i // num_images])
            flights[scheduler.add(flight.request, chosen)] = (i, flight)
        done: dict[int, Update] = {}
        try:
            while scheduler.busy:
                for event in scheduler.step():
                    i, flight = flights[event.request]
                    if isinstance(event.what, Failed):
                        raise event.what.error
                    if isinstance(event.what, Finished):
                        done[i] = self._finish(event.request, flight, event.what.outcome, min(batch_size, len(jobs)))
        finally:
            scheduler.clear()
        made = [done[i] for i in range(len(jobs))]
        redrawn = [u.resampled for u in made if u.resampled is not None]
        return GenerationResult(
            [u.image for u in made if u.image is not None],
            torch.stack([u.tokens for u in made if u.tokens is not None]),
            [u.stats for u in made if u.stats is not None],
            [p for p, _ in jobs],
            [s for _, s in jobs],
            warnings,
            torch.stack(redrawn) if redrawn else None,
        )

    def add_request(
        self,
        prompt: str,
        *,
        decoder: Decoder | None = None,
        sampling: SamplingParams | None = None,
        seed: int = 0,
        previews: bool = False,
    ) -> int:
        """Queue one image for `step`; returns the number that its updates carry.

        Requests with any decoders and at any phases share forwards, and join and leave between steps. The image is the
        one that `generate` makes of the same prompt and seed (in float32).

        Args:
            prompt, decoder, sampling, seed: as for `generate`.
            previews: also report the draft and every verified band, as pictures.

        Raises:
            ValueError: as `generate`, or the request can never fit into the KV budget.
        """
        self.check_prompts([prompt])
        if not 0 <= seed < 2**63:
            raise ValueError(f"seeds must be 0 or more and below 2**63, got {seed}")
        chosen = (MuloSD() if decoder is None else decoder).resolve(self.family)
        with torch.inference_mode():
            flight = self._flight(prompt, seed, chosen, self.family.sampling if sampling is None else sampling, None)
        flight = replace(flight, previews=previews)
        number = self.scheduler.add(flight.request, chosen)
        self._flights[number] = flight
        return number

    @torch.inference_mode()
    def step(self) -> list[Update]:
        """Run one forward for the requests under way and return what happened to them."""
        updates: list[Update] = []
        batch = max(1, len(self.scheduler.running))
        for event in self.scheduler.step():
            flight = self._flights[event.request]
            what = event.what
            if isinstance(what, Preview):
                if flight.previews:
                    tokens = what.tokens.clone()
                    [image] = self.to_images(tokens[None])
                    updates.append(Update(event.request, what.kind, image, tokens.cpu(), what.row))
                continue
            del self._flights[event.request]
            if isinstance(what, Finished):
                updates.append(self._finish(event.request, flight, what.outcome, batch))
            else:
                updates.append(Update(event.request, "failed", error=what.error))
        return updates

    @property
    def busy(self) -> bool:
        """Whether any added request waits or runs."""
        return self.scheduler.busy

    def abort(self, number: int) -> bool:
        """Drop an added request, waiting or running; whether there was one."""
        self._flights.pop(number, None)
        return self.scheduler.abort(number)

    def stream(
        self,
        prompt: str,
        *,
        decoder: Decoder | None = None,
        sampling: SamplingParams | None = None,
        seed: int = 0,
    ) -> Iterator[Update]:
        """Make one image and yield updates on the way: the draft, each verified band, the final picture.

        Raises:
            ValueError: as `generate`. An exception of the request is raised here.
        """
        number = self.add_request(prompt, decoder=decoder, sampling=sampling, seed=seed, previews=True)
        try:
            while True:
                for update in self.step():
                    if update.request != number:
                        continue
                    if update.error is not None:
                        raise update.error
                    yield update
                    if update.kind == "final":
                        return
        finally:
            self.abort(number)

    def warmup(self, decoder: Decoder | None = None) -> None:
        """Make one image and forget it, so that the first request meets warm caches, buffers and kernels."""
        condition = Condition(self.family.null_features(1))
        self.generate(self.family.conditioner.example, decoder=decoder, features=condition)

    def _flight(
        self,
        prompt: str,
        seed: int,
        decoder: Decoder,
        params: SamplingParams,
        progress: Callable[[Progress], None] | None,
        given: Condition | None = None,
    ) -> Flight:
        recorder = Recorder(progress)
        begun = time.perf_counter()
        with recorder.stage("text"):
            condition = self.family.condition([prompt]) if given is None else given
            features = condition.features
            if params.guided:
                features = torch.cat([features, self.family.null_features(1).to(features)])
        mask = None if condition.mask is None else condition.mask[0]
        request = Request(self.family, features, seed, params, recorder, mask=mask)
        return Flight(request, decoder, begun)

    def _finish(self, number: int, flight: Flight, outcome: Outcome, batch: int) -> Update:
        recorder = flight.request.recorder
        with recorder.stage("decode"):
            [image] = self.to_images(outcome.tokens[None])
        recorder.report("decode", 1, 1)
        stats = GenerationStats(
            flight.decoder.name,
            flight.decoder.settings(),
            flight.request.seed,
            batch,
            dict(recorder.forwards),
            dict(recorder.fed),
            {**recorder.seconds, "total": time.perf_counter() - flight.begun},
            outcome.rejection,
            outcome.coverage,
            outcome.islands,
            outcome.depth,
            outcome.accepted,
        )
        redrawn = None if outcome.resampled is None else outcome.resampled.cpu()
        return Update(number, "final", image, outcome.tokens.cpu(), stats=stats, resampled=redrawn)

    def to_images(self, tokens: Tensor) -> list[Image]:
        """Decode tokens [B, H, W] to RGB pictures."""
        from PIL import Image

        with torch.inference_mode():
            pixels = self.family.tokenizer.decode(tokens.to(self.family.device))
        array = ((pixels.permute(0, 2, 3, 1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        return [Image.fromarray(np.ascontiguousarray(a), "RGB") for a in array]

    @torch.inference_mode()
    def nll(self, prompts: Sequence[str], tokens: Tensor) -> Tensor:
        """Negative log-likelihood of images under the model's own full context.

        Args:
            prompts: B prompts.
            tokens: int64 [B, H, W] on one of the family's grids.

        Returns:
            float32 [B], mean nats a token of the conditional branch at temperature 1.
        """
        if tokens.dim() != 3 or len(prompts) != tokens.shape[0]:
            raise ValueError(f"{len(prompts)} prompts need tokens [B, H, W], got {tuple(tokens.shape)}")
        flat = tokens.flatten(1).to(self.family.device)
        condition = self.family.condition(list(prompts))
        mask = None if condition.mask is None else condition.mask.to(self.family.device)
        logits = self.family.model(tokens.shape[-1])(condition.features, flat, tokens.shape[-1], mask)
        losses = F.cross_entropy(logits.flatten(0, 1), flat.flatten(), reduction="none")
        return losses.view(flat.shape).mean(dim=1).cpu()
