"""The engine in the shape of a pipeline of diffusers: the same call, the same output, callbacks and interrupts.

It needs no diffusers and derives from none of its classes: those load, save and offload components that a scheduler of
noise drives, and a family has no such parts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from .absent import NO_NEGATIVE_PROMPT, NO_STEPS, SQUARE
from .canvas import Canvas
from .engine.arguments import seeds_of, shown, texts_of, whole
from .engine.decoding.base import Decoder
from .engine.decoding.default import decoder_for
from .engine.decoding.size import able, sized
from .engine.decoding.spec import DecoderLike
from .engine.devices import checked_device
from .engine.engine import Engine
from .engine.request import Update
from .engine.sampling import SamplingLike
from .engine.scheduler import SchedulerConfig
from .engine.stats import GenerationStats

OutputType = Literal["pil", "np", "pt", "latent"]
Callback = Callable[["MulosdPipeline", int, int, dict[str, Any]], Any]
Generators = torch.Generator | Sequence[torch.Generator] | None
# Seeds that a generator gives are below it: JSON and JavaScript keep such numbers exactly.
DRAWN_SEEDS = 2**53


@dataclass(frozen=True)
class PipelineOutput:
    """Images of a call, all of the first prompt first. It is indexed as an output of diffusers: `out[0]`,
    `out["images"]`, `out.images`, `out.to_tuple()`.

    Attributes:
        images: by `output_type`: "pil" a list of RGB images; "np" float32 [B, H, W, 3] and "pt" float32 [B, 3, H, W]
            on the CPU, from 0 to 1; "latent" tokens int64 [B, h, w] on the CPU, -1 where none was drawn.
        seeds: one an image; `Engine.generate` draws the same image with it.
        stats: one an image, None for one that was interrupted.
        finished: one an image, False for one that was interrupted: it is the newest preview then, grey where there
            was none.
        warnings: what the family could not understand of the prompts.
    """

    images: list[Image] | np.ndarray | Tensor
    seeds: list[int]
    stats: list[GenerationStats | None]
    finished: list[bool]
    warnings: list[str] = field(default_factory=list)

    def keys(self) -> list[str]:
        return [f.name for f in fields(self)]

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.keys())

    def __getitem__(self, key: int | slice | str) -> Any:
        if isinstance(key, str):
            if key not in self.keys():
                raise KeyError(f"{key!r}; there are {', '.join(self.keys())}")
            return getattr(self, key)
        return self.to_tuple()[key]


class MulosdPipeline:
    """Draws images of prompts with one family, called as a pipeline of diffusers is.

    One call at a time: threads make a pipeline each, which may share an engine.

    Args:
        engine: what draws. `to` replaces it where the device or the type changes.
    """

    _callback_tensor_inputs = ("images", "latents", "updated")

    def __init__(self, engine: Engine) -> None:
        if not isinstance(engine, Engine):
            raise ValueError(f"engine must be an Engine (or take MulosdPipeline.from_pretrained), got {shown(engine)}")
        self.engine = engine
        # A callback, or another thread, sets it to end the call after the forward that runs.
        self._interrupt = False
        self._guidance_scale = engine.family.sampling.cfg_scale
        self._num_timesteps = 0
        self._told_of_steps = False

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path = "emoji",
        *,
        torch_dtype: str | torch.dtype | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        device_map: str | None = None,
        use_safetensors: bool | None = None,
        config: SchedulerConfig | None = None,
    ) -> MulosdPipeline:
        """Load a family.

        Args:
            pretrained_model_name_or_path: a bundled family by name, the folder of one, or a repository of the Hugging
                Face hub (see `Engine.from_pretrained`).
            torch_dtype, dtype: one of them: torch.float32, torch.bfloat16 or torch.float16, or their names; None is
                bfloat16 on a GPU and float32 elsewhere (see `Engine`).
            device, device_map: one of them, "cpu" where both are None.
            use_safetensors: weights are in safetensors always; False is refused.
            config: limits of the engine.

        Raises:
            ValueError: no such family, device or type, or a setting given twice; the message says what there is.
        """
        if torch_dtype is not None and dtype is not None:
            raise ValueError("dtype and torch_dtype are the same; give one of them")
        if device is not None and device_map is not None:
            raise ValueError("device and device_map are the same here; give one of them")
        if use_safetensors is not None and not use_safetensors:
            raise ValueError("use_safetensors=False: families hold their weights in safetensors alone")
        where = device if device is not None else "cpu" if device_map is None else device_map
        kind = dtype if torch_dtype is None else torch_dtype
        return cls(Engine.from_pretrained(pretrained_model_name_or_path, device=where, dtype=kind, config=config))

    @property
    def device(self) -> torch.device:
        return self.engine.family.device

    @property
    def dtype(self) -> torch.dtype:
        return self.engine.dtype

    @property
    def guidance_scale(self) -> float:
        """That of the latest call."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Forwards that the latest call has run."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    def to(
        self,
        *place: str | torch.device | torch.dtype,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> MulosdPipeline:
        """Move the family, and return this pipeline: `to("cuda")`, `to(torch.bfloat16)`, `to("cuda", torch.bfloat16)`.

        The family moves with its weights, so that engines which were made of it before are not to be used any more.
        The type stays where only a device is named. Weights that were rounded stay so in a wider type.

        Raises:
            ValueError: no such device or type, one of them given twice, or requests are under way.
        """
        for given in place:
            if isinstance(given, torch.dtype):
                if dtype is not None:
                    raise ValueError(f"to() takes one dtype, got {dtype} and {given}")
                dtype = given
            else:
                if device is not None:
                    raise ValueError(f"to() takes one device, got {shown(device)} and {shown(given)}")
                device = given
        if self.engine.busy:
            raise ValueError("to(): the engine has requests under way; let them end, or engine.clear() drops them")
        where, kind = self.device if device is None else checked_device(device), dtype or self.dtype
        if (where, kind) != (self.device, self.dtype):
            self.engine = Engine(self.engine.family, device=where, dtype=kind, config=self.engine.config)
        return self

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = _callback_tensor_inputs,
        decoder: DecoderLike = None,
        sampling: SamplingLike = None,
        seed: int | Sequence[int] | None = None,
        batch_size: int = 8,
    ) -> PipelineOutput | tuple[Any]:
        """Draw images.

        Args:
            prompt: one or several.
            height, width: px, a size of the family (`engine.family.image_sizes`); images are square, so one of them is
                enough. None is the decoder's own size, the family's largest. Smaller ones are drawn by `jacobi` where
                no decoder is named.
            num_inference_steps: ignored, with one warning.
            guidance_scale: classifier-free guidance, 1 is off; None is the family's.
            negative_prompt: None, or empty texts: there are none here.
            num_images_per_prompt: images of each prompt.
            generator: seeds come from it: `torch.randint(0, 2**53, (), generator=generator, device=generator.device)`
                for each image in turn, which moves its state on, so that a second call draws other images. A list
                has one generator for each image. None is torch's default one, of `torch.manual_seed`. In float32 an
                image depends on its seed, not on what else is in the call.
            output_type: see `PipelineOutput.images`.
            return_dict: False gives `(images,)`.
            callback_on_step_end: called as `callback(pipe, step, timestep, kwargs)` behind every forward: its number
                from 0 on, the number of images that are not finished, and a dictionary of what the next argument
                names. What it returns is not looked at. It may set `pipe._interrupt = True`, which ends the call.
            callback_on_step_end_tensor_inputs: "images", whole previews as RGB images of the final size, None where
                there is nothing yet; "latents", tokens int64 [h, w] on the CPU, -1 where they are not verified yet;
                "updated", numbers of the images of which this forward brought something new. Each is a list.
            decoder: a decoder or its text, such as "mulo:tau=0.02"; None is the family's default, `mulo` where
                it is calibrated and `serial` where not.
            sampling: changes how tokens are drawn, such as "top_k=100".
            seed: in place of a generator, as for `Engine.generate`: of every prompt, or one for each; image n of a
                prompt has seed + n.
            batch_size: most images that are drawn at a time.

        Raises:
            ValueError: something cannot be; the message says what can. An image that fails raises its exception.
        """
        self._interrupt = False
        self._num_timesteps = 0
        prompts = texts_of("prompt", prompt)
        count = whole("num_images_per_prompt", num_images_per_prompt)
        if output_type not in get_args(OutputType):
            raise ValueError(f"output_type must be one of {', '.join(get_args(OutputType))}, got {shown(output_type)}")
        wanted = self._wanted(callback_on_step_end_tensor_inputs)
        refuse_negative(negative_prompt)
        if num_inference_steps is not None:
            self._tell_of_steps()
        chosen, side = self._decoder(decoder, height, width)
        params = self.engine.family.sampling.changed(sampling)
        if guidance_scale is not None:
            params = params.changed({"cfg_scale": guidance_scale})
        self._guidance_scale = params.cfg_scale
        told = self.engine.check_prompts(prompts)
        repeated = [text for text in prompts for _ in range(count)]
        if seed is None:
            seeds = drawn_seeds(generator, len(repeated))
        elif generator is not None:
            raise ValueError("seed and generator both say where seeds come from; give one of them")
        else:
            seeds = [one + n for one in seeds_of(seed, len(prompts), count) for n in range(count)]

        sheets = [Sheet(side, self.engine.family.patch) for _ in seeds]
        steps = self.engine.stream_batch(
            repeated,
            decoder=chosen,
            sampling=params,
            seed=seeds,
            batch_size=batch_size,
            previews=callback_on_step_end is not None,
        )
        # Whatever ends the call drops what is not done, also where the exception of a callback is kept.
        with closing(steps):
            for step, met in enumerate(steps):
                self._num_timesteps = step + 1
                for number, update in met:
                    sheets[number].take(update)
                if callback_on_step_end is not None:
                    left = sum(sheet.final is None for sheet in sheets)
                    state = {
                        "images": [sheet.preview for sheet in sheets],
                        "latents": [sheet.tokens for sheet in sheets],
                        "updated": sorted({number for number, _ in met}),
                    }
                    callback_on_step_end(self, step, left, {name: state[name] for name in wanted})
                if self._interrupt:
                    break
        images = stacked(sheets, output_type)
        if not return_dict:
            return (images,)
        finals = [sheet.final for sheet in sheets]
        stats = [None if final is None else final.stats for final in finals]
        return PipelineOutput(images, seeds, stats, [final is not None for final in finals], told)

    def _wanted(self, names: Sequence[str]) -> list[str]:
        wanted = [names] if isinstance(names, str) else list(names)
        unknown = [name for name in wanted if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs has to be in {', '.join(self._callback_tensor_inputs)}, "
                f"got {shown(unknown[0])}"
            )
        return wanted

    def _tell_of_steps(self) -> None:
        if not self._told_of_steps:
            self._told_of_steps = True
            warnings.warn(f"num_inference_steps is ignored: {NO_STEPS}", stacklevel=3)

    def _decoder(self, decoder: DecoderLike, height: int | None, width: int | None) -> tuple[Decoder, int]:
        """The decoder of a call, and the side of its images in px."""
        family = self.engine.family
        sizes = {whole(n, v) for n, v in (("height", height), ("width", width)) if v is not None}
        if len(sizes) > 1:
            raise ValueError(
                f"height {height}, width {width}: {SQUARE}, family {family.name!r} draws "
                f"{', '.join(f'{size}x{size}' for size in family.image_sizes)}"
            )
        size = next(iter(sizes), None)
        chosen = decoder_for(family, decoder)
        if size is not None:
            chosen = sized(able(chosen, size, family) if decoder is None else chosen, size, family)
        chosen = chosen.resolve(family)
        return chosen, max(chosen.grids(family)) * family.patch


class Sheet:
    """One image of a call: its newest state.

    Args:
        side: of the image in px.
        patch: px a token side.
    """

    def __init__(self, side: int, patch: int) -> None:
        self.canvas = Canvas(side, patch)
        self.preview: Image | None = None
        self.tokens = torch.full((side // patch, side // patch), -1, dtype=torch.int64)
        self.final: Update | None = None

    def take(self, update: Update) -> None:
        """Take what an update brings."""
        if update.kind == "final":
            if update.image is None or update.tokens is None:
                raise RuntimeError("a final update holds an image and its tokens")
            self.final, self.preview, self.tokens = update, update.image, update.tokens
            return
        self.preview = self.canvas.paint(update)
        if update.kind == "band" and update.tokens is not None:
            # A copy: a callback may have kept the earlier state.
            self.tokens = self.tokens.clone()
            self.tokens[update.row : update.row + len(update.tokens)] = update.tokens

    @property
    def image(self) -> Image:
        """The image, or the newest there is of it."""
        return self.canvas.image if self.preview is None else self.preview


def refuse_negative(given: str | Sequence[str] | None) -> None:
    """ValueError for a negative prompt that says something."""
    asked = [] if given is None else texts_of("negative_prompt", given, least=0)
    if any(text.strip() for text in asked):
        raise ValueError(f"negative_prompt: {NO_NEGATIVE_PROMPT} (more closely: guidance_scale=…)")


def drawn_seeds(generator: Generators, count: int) -> list[int]:
    """A seed for each image, from one generator in turn, from one each, or from torch's default; ValueError else."""
    one = generator is None or isinstance(generator, torch.Generator)
    each: list[Any] = [generator] * count if one else list(generator) if isinstance(generator, (list, tuple)) else []
    wrong = next((g for g in each if g is not None and not isinstance(g, torch.Generator)), None)
    if wrong is not None or not (each and (one or all(each))):
        got = shown(generator if wrong is None else wrong)
        raise ValueError(f"generator must be a torch.Generator, a list of them, one for each image, or None, got {got}")
    if len(each) != count:
        raise ValueError(f"{count} images (prompts x num_images_per_prompt) need {count} generators, got {len(each)}")
    return [int(torch.randint(0, DRAWN_SEEDS, (), generator=g, device="cpu" if g is None else g.device)) for g in each]


def stacked(sheets: Sequence[Sheet], output_type: OutputType) -> list[Image] | np.ndarray | Tensor:
    """The images of a call in the form that was asked for, see `PipelineOutput`."""
    if output_type == "latent":
        return torch.stack([sheet.tokens for sheet in sheets])
    images = [sheet.image for sheet in sheets]
    if output_type == "pil":
        return images
    array = np.stack([np.asarray(image, dtype=np.float32) for image in images]) / np.float32(255)
    return array if output_type == "np" else torch.from_numpy(array).permute(0, 3, 1, 2).contiguous()
