"""A family that is served: its engine, its queue, and what a request means to it."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..absent import SQUARE
from ..cli.options import spell_sampling
from ..engine.async_engine import AsyncEngine
from ..engine.conditioning import ClassConditioner
from ..engine.decoding import Decoder, parse, spell
from ..engine.decoding.default import applying, default_decoder, remark
from ..engine.decoding.size import able, sized
from ..engine.engine import Engine, EngineLoad
from ..engine.sampling import SamplingParams
from .admission import Admission
from .errors import ApiError
from .record import logger
from .schema import ImageRequest, Model, ModelFacts
from .settings import ALL_QUALITIES, QUALITIES, Settings

# Up-samplers that a client may choose: the others read files of the server.
UPSAMPLERS = ("latent", "pixel", "nearest", "srgan", "none")
# A family keeps a table of each `pool` that was asked for, codebook size times pool.
MOST_POOLED = 64


@dataclass(frozen=True)
class Asked:
    """What a request comes to, with every open setting filled in.

    Attributes:
        decoder, sampling: resolved.
        size: side of the image in px.
        quality: as the answer names it.
        warnings: words that the family does not know, and a size that it does not draw.
    """

    decoder: Decoder
    sampling: SamplingParams
    size: int
    quality: str
    warnings: list[str]


class Served:
    """One family.

    Args:
        engine: its engine.
        settings: of the server.
        on_step: told of each step: the family's name, seconds, the load.
    """

    def __init__(
        self, engine: Engine, settings: Settings, on_step: Callable[[str, float, EngineLoad], None] | None = None
    ) -> None:
        self.family, self.settings = engine.family, settings
        self.name = engine.family.name
        self.created = int(time.time())
        self.admission = Admission(engine.config.max_running, settings.max_waiting)
        told = None if on_step is None else (lambda seconds, load: on_step(self.name, seconds, load))
        self.engine = AsyncEngine(engine, max_waiting=self.admission.places, on_step=told)
        self.dtype = str(engine.dtype).removeprefix("torch.")
        self.decoder = settings.decoder or default_decoder(self.family)
        if settings.decoder is None and (said := remark(self.family)) is not None:
            logger.info(said)
        # A server that could not draw what it draws by default would find out late.
        engine.resolve(self.decoder)
        self.qualities = dict(self._qualities(engine))
        self.decoders = [name for name, reason in applying(self.family).items() if not reason]
        # Checks are quick, but for a conditioner that computes they would be called beside a step.
        self._resolve, self._check = engine.resolve, engine.check_prompts

    def _qualities(self, engine: Engine) -> Iterator[tuple[str, str]]:
        """Texts of decoders by quality; those that nobody asked for are left out where they cannot draw the family."""
        for quality, text in self.settings.qualities.items():
            try:
                engine.resolve(text)
            except ValueError:
                if QUALITIES.get(quality) != text:
                    raise
            else:
                yield quality, text

    def ask(self, body: ImageRequest) -> Asked:
        """What a request comes to.

        Raises:
            ApiError: 400, naming the parameter that cannot be.
        """
        options = body.mulosd
        given = None if options is None else options.decoder
        quality = body.quality or "auto"
        text = given or self.qualities.get(quality, self.decoder)
        size, told = self._size(body.size)
        with self._blames("mulosd.decoder"):
            decoder = parse(safe(text))
        if given is None:
            decoder = able(decoder, size, self.family)
        with self._blames("size"):
            decoder = decoder if size is None else sized(decoder, size, self.family)
        changed = {
            "cfg_scale": body.guidance_scale,
            **({} if options is None else {n: getattr(options, n) for n in ("temperature", "top_k", "top_p")}),
        }
        with self._blames("mulosd"):
            decoder, sampling = self._resolve(decoder, {k: v for k, v in changed.items() if v is not None})
        with self._blames("prompt"):
            warnings = self._check([body.prompt])
        side = max(decoder.grids(self.family)) * self.family.patch
        return Asked(decoder, sampling, side, level(quality), [*told, *warnings])

    def remembers(self, asked: Asked, prompt: str, seed: int) -> dict[str, str]:
        """What the file of an image states, so that the command line draws it again."""
        from .._version import __version__

        return {
            "prompt": prompt,
            "seed": str(seed),
            "decoder": spell(asked.decoder),
            "family": self.name,
            "sampling": spell_sampling(asked.sampling),
            "dtype": self.dtype,
            **({"quantization": held} if (held := self.family.quantization) is not None else {}),
            "version": __version__,
        }

    def model(self, name: str | None = None) -> Model:
        """What /v1/models says of it, under one of its names."""
        from ..data.family import scene_words

        objects, backgrounds = scene_words(self.family)
        conditioner = self.family.conditioner
        return Model(
            id=name or self.name,
            created=self.created,
            owned_by="mulosd",
            mulosd=ModelFacts(
                image_sizes=[f"{size}x{size}" for size in self.family.image_sizes],
                scales=list(self.family.scales),
                decoders=self.decoders,
                default_decoder=self.decoder,
                qualities={q: self.qualities.get(q, self.decoder) for q in ALL_QUALITIES},
                conditions=conditioner.kind,
                objects=objects,
                backgrounds=backgrounds,
                words=sorted(self.family.vocabulary.phrases),
                classes=conditioner.names if isinstance(conditioner, ClassConditioner) else [],
                example=conditioner.example,
                max_n=self.settings.max_n,
                max_prompt_chars=self.settings.max_prompt_chars,
            ),
        )

    def _size(self, text: str | None) -> tuple[int | None, list[str]]:
        """Side in px, None where any will do, and what is to be said of it."""
        if text in (None, "auto"):
            return None, []
        found = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text or "", re.ASCII)
        sides = self.family.image_sizes
        drawn = ", ".join(f"{side}x{side}" for side in sides)
        if found is None or (found[1] != found[2] and self.settings.size_policy == "strict"):
            raise ApiError(
                400,
                f"size {text!r}: {SQUARE}, family {self.name!r} draws {drawn}; or say auto",
                param="size",
                code="invalid_value",
            )
        width, height = int(found[1]), int(found[2])
        if self.settings.size_policy == "strict" or (width == height and width in sides):
            return width, []
        # The nearest by area, the larger of two that are as near.
        side = min(reversed(sides), key=lambda side: abs(math.log(width * height / side**2)))
        return side, [f"size {text}: family {self.name!r} draws {drawn}; this is {side}x{side}"]

    def _blames(self, param: str) -> Blame:
        return Blame(param, {} if self.family.path is None else {str(self.family.path): self.name})


class Blame:
    """Turns a ValueError of the engine into a 400 that names a parameter, and no path of this machine."""

    def __init__(self, param: str, hidden: Mapping[str, str]) -> None:
        self.param, self.hidden = param, hidden

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (ValueError, OverflowError)):
            text = str(error)
            for path, name in self.hidden.items():
                text = text.replace(path, name)
            raise ApiError(400, text, param=self.param, code="invalid_value") from error


def safe(text: str) -> str:
    """A decoder's text that names no file and needs no large table; ValueError otherwise, be the file there or not."""
    for part in text.split(":")[1:]:
        key, _, value = part.partition("=")
        if key.strip() == "pool" and value.strip().isdecimal() and int(value) > MOST_POOLED:
            raise ValueError(f"pool may be {MOST_POOLED} at most here, got {value}")
        if key.strip() == "upsampler" and value.strip() not in UPSAMPLERS:
            raise ValueError(f"upsampler must be one of {', '.join(UPSAMPLERS[:-1])} here")
    return text


def level(quality: str) -> str:
    """A quality as answers name it: "auto" and the older names are no answer."""
    return {"auto": "medium", "standard": "medium", "hd": "high"}.get(quality, quality)
