"""The engine: prompts in, images out."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Container, Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .arguments import SEEDS, jobs_of, seeds_of, shown, texts_of, tokens_of, whole
from .cache import KVCache
from .conditioning import Condition, check_condition
from .decoding.base import Decoder
from .decoding.default import default_decoder
from .decoding.spec import DecoderLike, decoder_of, spell
from .devices import checked_device, exact_float32
from .dtypes import settled_dtype
from .family import Family
from .hub import load_family
from .likelihood import nll
from .linear_choice import Times, checked_linear, choose
from .models.quantized import check_device, checked_kind
from .request import Request, Update
from .sampling import SamplingLike, SamplingParams
from .scheduler import Scheduler, SchedulerConfig
from .stats import GenerationStats, Progress, Recorder

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Engine", "EngineLoad", "GenerationResult", "Update"]


@dataclass(frozen=True)
class EngineLoad:
    """What an engine has under way: requests waiting and running, and bytes of KV cache that the running may hold."""

    waiting: int = 0
    running: int = 0
    kv_bytes: int = 0


@dataclass(frozen=True)
class GenerationResult:
    """Images of a call, in the order of the prompts (all images of a prompt together).

    Attributes:
        images: RGB images.
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


class Engine:
    """Generates images with the models of one family.

    `generate`, `stream` and requests that were added share one scheduler and its limits. Any thread may call any
    method: threads take turns, step by step, what they have under way shares forwards, and no image depends on it.
    `progress` is called by whichever thread runs the step.

    Args:
        family: a loaded family.
        device: a torch device.
        dtype: "float32" (exact, and never TF32), "bfloat16" or "float16" for the AR model and its keys and values; the
            tokenizer stays in float32. None is bfloat16 on a GPU and float32 elsewhere. In the narrow types an image
            may depend on the batch that it was made in.
        config: limits of what runs at a time.
        quantization: "int8" or, on a GPU of sm_89 or later, "fp8" (e4m3) holds the weights of the layers in 8 bits, see
            docs/gpu.md; `family` itself is changed. As in the narrow types an image may depend on its batch.
        linear: how a CPU multiplies by the weights: "auto" takes what was measured to be fastest on this machine,
            "torch" is `F.linear` always, "native", "onednn" and "left" are its rivals where they serve, see
            docs/cpu.md. None is $MULOSD_LINEAR, or "auto". Ways differ in the last bits; `family` itself is changed.
    """

    def __init__(
        self,
        family: Family,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        config: SchedulerConfig | None = None,
        quantization: str | None = None,
        linear: str | None = None,
    ) -> None:
        self.config = SchedulerConfig() if config is None else config
        for name, value, kind in (("family", family, Family), ("config", self.config, SchedulerConfig)):
            if not isinstance(value, kind):
                raise ValueError(f"{name} must be a {kind.__name__}, got {shown(value)}")
        where = checked_device(device)
        self.dtype = settled_dtype(dtype, where)
        self.linear = checked_linear(linear)
        eight_bit = checked_kind(quantization)
        check_device(eight_bit or family.quantization, where)
        self.family = family.quantize(eight_bit).to(where, self.dtype)
        self._device = self.family.device
        # What "auto" chose by, see docs/cpu.md.
        self.linear_times: dict[str, Times] = {}
        if self._device.type == "cpu":
            drafters = [] if self.family.eagle is None else [self.family.eagle]
            self.linear_times = choose([*self.family.models, *drafters], self.linear)
        self.scheduler = Scheduler(self.family, self.config)
        self._requests: dict[int, Request] = {}
        # Updates without images yet, and updates that nobody has been given yet.
        self._raw: deque[Update] = deque()
        self._kept: list[Update] = []
        # Requests of calls under way, whose updates `step` leaves to them.
        self._claimed: set[int] = set()
        # Whoever holds it may change the above and run the models: threads take turns, step by step.
        self._lock = threading.RLock()
        self._process: int | None = None

    @classmethod
    def from_pretrained(
        cls,
        family: str | Path = "emoji",
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        config: SchedulerConfig | None = None,
        quantization: str | None = None,
        linear: str | None = None,
        grids: Sequence[int] = (),
        prompt_length: int | None = None,
    ) -> Engine:
        """Load a bundled family by name, a family folder, or a repository of the Hugging Face hub.

        Args:
            family: name, folder, or OWNER/NAME of a repository (Janus-Pro, Emu3-Gen, GLM-Image, see docs/models.md),
                which is fetched once and then read from the hub's cache.
            device, dtype, config, quantization, linear: as for `Engine`.
            grids: sides in tokens, for a repository whose model draws several; () is its usual one. With several
                `MuloSD` drafts on the smaller ones.
            prompt_length: most tokens of a prompt of a repository's model, its template included.

        Raises:
            ValueError: there is none; the message lists what there is.
        """
        check_device(checked_kind(quantization), checked_device(device))  # before weights are read
        checked_linear(linear)
        kind = settled_dtype(dtype, device)
        loaded = load_family(family, dtype=kind, grids=grids, prompt_length=prompt_length)
        return cls(loaded, device=device, dtype=kind, config=config, quantization=quantization, linear=linear)

    @property
    def caches(self) -> dict[tuple[int, bool], KVCache]:
        """The KV caches, by grid and whether they are the feature drafter's."""
        return self.scheduler.caches

    def check_prompts(self, prompts: Sequence[str]) -> list[str]:
        """Warnings for words that the family does not know; ValueError for prompts that ask for nothing."""
        return self.family.check_prompts(texts_of("prompts", prompts, least=0))

    def resolve(self, decoder: DecoderLike = None, sampling: SamplingLike = None) -> tuple[Decoder, SamplingParams]:
        """The decoder and the sampling parameters that a request runs with, every open setting filled in.

        Raises:
            ValueError: as `add_request`, without any work.
        """
        chosen, params = self._chosen(decoder), self.family.sampling.changed(sampling)
        self.scheduler.check(chosen, 2 if params.guided else 1)
        return chosen, params

    def _chosen(self, decoder: DecoderLike) -> Decoder:
        """The decoder that an argument means, resolved; None is the family's default."""
        named = decoder_of(default_decoder(self.family) if decoder is None else decoder)
        found = named.resolve(self.family)
        found.check_layout(self.family)
        return found

    def load(self) -> EngineLoad:
        """What is under way. It waits for a step of another thread, if there is one."""
        with self._lock:
            scheduler = self.scheduler
            return EngineLoad(len(scheduler.waiting), len(scheduler.running), scheduler.bytes)

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        decoder: DecoderLike = None,
        sampling: SamplingLike = None,
        seed: int | Sequence[int] = 0,
        num_images: int = 1,
        batch_size: int = 8,
        progress: Callable[[Progress], None] | None = None,
        features: Condition | None = None,
    ) -> GenerationResult:
        """Generate images.

        The image of a prompt depends on its own seed alone (in float32), not on what else is in the call. Requests that
        were added before go on meanwhile; `step` reports later what became of them.

        Args:
            prompts: one or several.
            decoder: how to decode: a decoder, a text such as "mulo:tau=0.02", or a mapping such as
                {"name": "mulo", "tau": 0.02}; None is the family's default: `mulo` where it is calibrated, or `serial`.
            sampling: how tokens are drawn; a text such as "cfg_scale=3:top_k=100" or a mapping changes the family's
                defaults, None takes them.
            seed: of every prompt, or one for each; image n of a prompt uses seed + n.
            num_images: images a prompt.
            batch_size: most images of this call under way at a time; the limits of `SchedulerConfig` hold as well.
            progress: called with each `Progress`.
            features: conditions of the prompts, one each, where they are not to be computed
                (see `Conditioner.precomputed`); the prompts are then names alone.

        Raises:
            ValueError: an empty prompt, or a setting that the family cannot serve (the message says what it can). An
                exception of one image is raised, and the others of the call are dropped.
        """
        asked, jobs = jobs_of(prompts, seed, num_images)
        batch_size = whole("batch_size", batch_size)
        if features is not None:
            check_condition(features, self.family.like(), len(asked))
        warnings = [] if features is not None else self.check_prompts(asked)
        chosen, params = self._chosen(decoder), self.family.sampling.changed(sampling)
        each = len(jobs) // len(asked)
        given = None if features is None else [features[n // each : n // each + 1] for n in range(len(jobs))]
        done: dict[int, Update] = {}
        with closing(self._follow(jobs, chosen, params, batch_size, progress=progress, conditions=given)) as steps:
            for met in steps:
                done.update(met)
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
        decoder: DecoderLike = None,
        sampling: SamplingLike = None,
        seed: int = 0,
        previews: bool | int = False,
        progress: Callable[[Progress], None] | None = None,
        features: Condition | None = None,
    ) -> int:
        """Queue one image for `step`; returns the number that its updates carry.

        Requests with any decoders and at any phases share forwards, and join and leave between steps. The image is the
        one that `generate` makes of the same prompt and seed (in float32).

        Args:
            prompt, decoder, sampling, seed: as for `generate`.
            previews: also report the draft and every verified band, or rows as they are decided, as images; a number is
                at most so many of them.
            progress, features: as for `generate`; features of this one prompt.

        Raises:
            ValueError: as `generate`, or the request can never fit into the KV budget.
        """
        if not isinstance(prompt, str):
            raise ValueError(f"prompt must be a text, got {shown(prompt)}")
        if features is None:
            self.check_prompts([prompt])
        else:
            check_condition(features, self.family.like(), 1)
        seed = whole("seed", seed, 0, SEEDS - 1)
        if not isinstance(previews, bool):
            previews = whole("previews", previews, 0)
        chosen, params = self.resolve(decoder, sampling)
        return self._add(prompt, seed, chosen, params, progress, condition=features, previews=previews)

    def step(self) -> list[Update]:
        """Run one forward for the requests under way and return what happened to those that were added, and what
        happened to them while `generate` or `stream` ran. One that fails is an update, no exception."""
        with self._lock:
            self._run()
            kept, self._kept = self._kept, []
            self._kept = [update for update in kept if update.request in self._claimed]
            return [update for update in kept if update.request not in self._claimed]

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do or to tell."""
        with self._lock:
            kept = any(update.request not in self._claimed for update in self._kept)
            return kept or bool(self._raw) or self.scheduler.busy

    def abort(self, number: int) -> bool:
        """Drop a request, waiting or running, and what is not reported of it; whether it was under way."""
        number = whole("number", number, 0)
        with self._lock:
            self._claimed.discard(number)
            self._requests.pop(number, None)
            self._kept = [update for update in self._kept if update.request != number]
            return self.scheduler.abort(number)

    def clear(self) -> None:
        """Drop every request."""
        with self._lock:
            for number in list(self._requests):
                self.abort(number)

    def stream(
        self,
        prompt: str,
        *,
        decoder: DecoderLike = None,
        sampling: SamplingLike = None,
        seed: int = 0,
    ) -> Iterator[Update]:
        """Make one image and yield updates on the way: the draft, each verified band, the final image.

        Raises:
            ValueError: as `generate`. An exception of the request is raised here.
        """
        with self._lock:
            number = self.add_request(prompt, decoder=decoder, sampling=sampling, seed=seed, previews=True)
            self._claimed.add(number)
        try:
            while True:
                for update in self._met([number]):
                    if update.error is not None:
                        raise update.error
                    yield update
                    if update.kind == "final":
                        return
        finally:
            self.abort(number)

    def stream_batch(
        self,
        prompts: str | Sequence[str],
        *,
        decoder: DecoderLike = None,
        sampling: SamplingLike = None,
        seed: int | Sequence[int] = 0,
        num_images: int = 1,
        batch_size: int = 8,
        previews: bool | int = True,
    ) -> Generator[list[tuple[int, Update]], None, None]:
        """Make the images of `generate`, and yield behind every forward what came of them.

        Closing the generator, as leaving the loop does once nothing refers to it, drops what is not done.

        Args:
            prompts, decoder, sampling, seed, num_images, batch_size: as for `generate`.
            previews: as for `add_request`, of each image.

        Returns:
            Lists of (number of the image, update), empty for a forward that brought nothing to tell. The numbers are
            the places that `generate` gives the images; each has one final update, behind its previews.

        Raises:
            ValueError: as `generate`, at once. An exception of one image is raised in the loop, and the others of the
                call are dropped.
        """
        asked, jobs = jobs_of(prompts, seed, num_images)
        batch_size = whole("batch_size", batch_size)
        if not isinstance(previews, bool):
            previews = whole("previews", previews, 0)
        self.check_prompts(asked)
        chosen, params = self.resolve(decoder, sampling)
        return self._follow(jobs, chosen, params, batch_size, previews=previews)

    def _follow(
        self,
        jobs: Sequence[tuple[str, int]],
        decoder: Decoder,
        params: SamplingParams,
        batch_size: int,
        *,
        progress: Callable[[Progress], None] | None = None,
        conditions: Sequence[Condition] | None = None,
        previews: bool | int = False,
    ) -> Generator[list[tuple[int, Update]], None, None]:
        """Make the images of (prompt, seed) pairs, so many at a time; updates by number of the pair, step by step."""
        under_way: dict[int, int] = {}
        begun = 0
        try:
            while under_way or begun < len(jobs):
                while len(under_way) < batch_size and begun < len(jobs):
                    condition = None if conditions is None else conditions[begun]
                    number = self._add(
                        *jobs[begun], decoder, params, progress, condition=condition, previews=previews, claimed=True
                    )
                    under_way[number] = begun
                    begun += 1
                met = []
                for update in self._met(under_way):
                    if update.error is not None:
                        raise update.error
                    met.append((under_way[update.request], update))
                    if update.kind == "final":
                        del under_way[update.request]
                yield met
        finally:
            for number in under_way:
                self.abort(number)

    def warmup(self, decoder: DecoderLike = None, sampling: SamplingLike = None) -> None:
        """Make an image and forget it, so that the first request meets warm caches, buffers and kernels.

        On a GPU the steps that such requests may need are then captured, those of verifications too, for as many of
        them as the scheduler runs at a time, as far as there is room; `mulo` draws a few images for that, with nothing
        rejected, with everything and between. Warm up for each decoder and each way to sample that will be asked for.

        Args:
            decoder, sampling: as for `generate`.
        """
        from .decoding.rehearsal import rehearsals

        condition = Condition(self.family.null_features(1))
        chosen, params = self.resolve(decoder, sampling)
        for one in rehearsals(chosen) if self._device.type == "cuda" else (chosen,):
            self.generate(self.family.conditioner.example, decoder=one, sampling=params, features=condition)
        with self._lock, torch.inference_mode(), exact_float32(self._device):
            self.scheduler.capture()

    def to_images(self, tokens: Tensor) -> list[Image]:
        """Decode tokens [B, H, W] to RGB images."""
        from PIL import Image

        tokens = tokens_of(tokens, self.family.ar.config.vocab_size)
        with torch.inference_mode(), self._lock, exact_float32(self._device):
            pixels = self.family.tokenizer.decode(tokens.to(self.family.device))
        if not bool(torch.isfinite(pixels).all()):
            raise ValueError(
                f"the image tokenizer of family {self.family.name!r} gives NaN or infinite pixels: its weights "
                f"(tokenizer.safetensors) are damaged"
            )
        array = ((pixels.permute(0, 2, 3, 1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        return [Image.fromarray(np.ascontiguousarray(a), "RGB") for a in array]

    @torch.inference_mode()
    def nll(self, prompts: Sequence[str], tokens: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """Negative log-likelihood of images under the model's own full context.

        Args:
            prompts: B prompts.
            tokens: int64 [B, H, W] on one of the family's grids.
            seeds: B seeds that the images were drawn with, where the family draws a condition for each image.

        Returns:
            float32 [B], mean nats a token of the conditional branch at temperature 1.
        """
        prompts, tokens = texts_of("prompts", prompts), tokens_of(tokens, self.family.ar.config.vocab_size)
        if len(prompts) != tokens.shape[0] or tokens.shape[1] != tokens.shape[2]:
            raise ValueError(f"{len(prompts)} prompts need tokens [B, H, H], got {list(tokens.shape)}")
        self.family.model(tokens.shape[1])  # there is such a grid
        self.check_prompts(prompts)
        drawn = None if seeds is None else seeds_of(seeds, len(prompts), 1)
        with self._lock, exact_float32(self._device):
            return nll(self.family, self.family.condition(prompts, drawn), tokens).cpu()

    @torch.inference_mode()
    def _add(
        self,
        prompt: str,
        seed: int,
        decoder: Decoder,
        params: SamplingParams,
        progress: Callable[[Progress], None] | None = None,
        *,
        condition: Condition | None = None,
        previews: bool | int = False,
        claimed: bool = False,
    ) -> int:
        if progress is not None and not callable(progress):
            raise ValueError(f"progress must be a function of a Progress, got {shown(progress)}")
        stats = GenerationStats(decoder.name, decoder.settings(), seed, spelling=spell(decoder))
        with self._lock, exact_float32(self._device):
            recorder = Recorder(progress, stats, self._settle if self._device.type == "cuda" else None)
            with recorder.stage("text"):
                found = self.family.condition([prompt], [seed]) if condition is None else condition
                features = found.features
                if params.guided:
                    null = self.family.null_features(1) if found.null is None else found.null
                    features = torch.cat([features, null.to(features)])
            mask = None if found.mask is None else found.mask[0]
            request = Request(self.family, features, seed, params, recorder, mask, previews)
            number = self.scheduler.add(request, decoder)
            self._requests[number] = request
            if claimed:
                self._claimed.add(number)
            return number

    def _settle(self) -> None:
        """Wait for what the device was given."""
        torch.cuda.current_stream(self._device).synchronize()

    def _met(self, numbers: Container[int]) -> list[Update]:
        """Updates of these requests: those that came up before, or else those of one step. All others are kept."""
        with self._lock:
            if not any(update.request in numbers for update in self._kept):
                self._run()
            kept, self._kept = self._kept, []
            self._kept = [update for update in kept if update.request not in numbers]
            met = [update for update in kept if update.request in numbers]
            self._claimed.difference_update(u.request for u in met if u.kind in ("final", "failed"))
            return met

    @torch.inference_mode()
    def _run(self) -> None:
        """One step of the scheduler; what it tells is kept, with images. An interrupt loses nothing of it."""
        if self._process is None:
            self._process = os.getpid()
        elif self._process != os.getpid():
            raise RuntimeError(
                "this engine was used before the process forked, and the threads of torch do not survive that: make "
                "the engine in the child, or start processes by spawn (multiprocessing.set_start_method('spawn'))"
            )
        with exact_float32(self._device):
            self._raw += self.scheduler.step()
        while self._raw:
            update = self._raw[0]
            request = self._requests.get(update.request)
            if request is not None:
                drawn = self._drawn(update, request)
                self._kept.append(drawn)
                if drawn.kind in ("final", "failed"):
                    del self._requests[update.request]
            self._raw.popleft()

    def _drawn(self, update: Update, request: Request) -> Update:
        """An update with its image; a failed one when that cannot be decoded."""
        if update.tokens is None:
            return update
        try:
            recorder, final = request.recorder, update.kind == "final"
            tokens = update.tokens.cpu()
            if bool((tokens < 0).any()):
                raise ValueError(
                    f"the model of family {self.family.name!r} gave NaN or infinite logits: its weights are damaged, "
                    f"or too large for {self.dtype}"
                )
            with recorder.stage("decode") if final else nullcontext():
                image = request.shown(update.tokens)
                if image is None:
                    [image] = self.to_images(update.tokens[None])
            if final:
                recorder.report("decode", 1, 1)
                recorder.stop()
        except Exception as error:
            self.scheduler.abort(update.request)
            return Update(update.request, "failed", error=error)
        else:
            request.last = (update.tokens, image)
        resampled = None if update.resampled is None else update.resampled.cpu()
        rejected = None if update.rejected is None else update.rejected.cpu()
        return replace(update, image=image, tokens=tokens, resampled=resampled, rejected=rejected)
