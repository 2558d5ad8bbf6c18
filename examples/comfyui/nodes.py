"""The nodes: one loads a family, one draws with it and shows the image as it comes into being."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import ComfyAPISync, io

try:
    from mulosd import MulosdPipeline, list_families
    from mulosd.engine.decoding import DECODERS, parse
except ImportError as error:
    raise ImportError(
        f"mulosd is not installed in the Python that runs ComfyUI ({error}): run `python -m pip install .` with that "
        f"Python in a checkout of mulosd"
    ) from error

PIPELINE = io.Custom("MULOSD_PIPELINE")
CATEGORY = "mulosd"
# JavaScript keeps whole numbers below it exactly, so that a seed is what the widget shows.
SEEDS = 2**53
MOST_IMAGES = 64
# The value of a widget that leaves a setting to the family.
OWN_SIZE, OWN_GUIDANCE = 0, -1.0


class MulosdLoader(io.ComfyNode):
    """Loads a family, once: ComfyUI keeps it until a widget or a file of the folder changes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MulosdLoader",
            display_name="Load mulosd family",
            category=CATEGORY,
            description="Loads a family of models: a bundled one, or the folder of your own.",
            inputs=[
                io.Combo.Input("family", options=list_families(), tooltip="A bundled family."),
                io.String.Input(
                    "folder", default="", optional=True, tooltip="The folder of a family, in place of a bundled one."
                ),
                io.Combo.Input("device", options=["auto", "cpu", "cuda"], default="auto", optional=True),
                io.Combo.Input(
                    "dtype",
                    options=["auto", "float32", "bfloat16", "float16"],
                    default="auto",
                    optional=True,
                    tooltip="float32 is exact: the same seed is the same image on every machine and in every batch.",
                ),
            ],
            outputs=[PIPELINE.Output(display_name="pipeline")],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None = None) -> bool | str:
        if folder and not (Path(folder) / "family.json").is_file():
            return f"folder {folder!r} is no family: there is no family.json in it"
        return True

    @classmethod
    def fingerprint_inputs(
        cls, family: str = "", folder: str | None = None, device: str = "auto", dtype: str = "auto"
    ) -> list[tuple[str, int, int]]:
        """What changes when files of the folder do. An input that is a link is missing here."""
        files = sorted(path for path in Path(folder).iterdir() if path.is_file()) if folder else []
        return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]

    @classmethod
    def execute(cls, family: str, folder: str = "", device: str = "auto", dtype: str = "auto") -> io.NodeOutput:
        where = comfy.model_management.get_torch_device().type if device == "auto" else device
        if device == "auto" and where != "cuda":
            where = "cpu"
        kind = None if dtype == "auto" else dtype
        return io.NodeOutput(MulosdPipeline.from_pretrained(folder or family, device=where, dtype=kind))


class MulosdSampler(io.ComfyNode):
    """Draws a batch of images of one prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MulosdSampler",
            display_name="mulosd sampler",
            category=CATEGORY,
            description="Draws images of a prompt: a draft first, then verified rows, then the image.",
            inputs=[
                PIPELINE.Input("pipeline"),
                io.String.Input("prompt", default="a cat left of a guitar on a yellow background", multiline=True),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=SEEDS - MOST_IMAGES,
                    control_after_generate=True,
                    tooltip="Image n of the batch has the seed + n; `mulosd generate --seed` draws the same.",
                ),
                io.Combo.Input("decoder", options=list(DECODERS), default="mulo"),
                io.String.Input(
                    "settings",
                    default="",
                    optional=True,
                    tooltip="Of the decoder, such as scale=4:tau=0.02; `mulosd decoders` lists them.",
                ),
                io.Float.Input(
                    "guidance",
                    default=OWN_GUIDANCE,
                    min=OWN_GUIDANCE,
                    max=100.0,
                    step=0.1,
                    optional=True,
                    tooltip="Classifier-free guidance; 1 is off, a negative number leaves it to the family.",
                ),
                io.Int.Input(
                    "size",
                    default=OWN_SIZE,
                    min=OWN_SIZE,
                    max=16384,
                    optional=True,
                    tooltip="Side in px, one of the family's; 0 is its largest.",
                ),
                io.Int.Input("batch_size", default=1, min=1, max=MOST_IMAGES, optional=True),
            ],
            outputs=[io.Image.Output(display_name="images"), io.String.Output(display_name="report")],
        )

    @classmethod
    def validate_inputs(cls, decoder: str | None = None, settings: str | None = None) -> bool | str:
        if decoder is None:  # a link, whose value is not known yet
            return True
        try:
            parse(spelling(decoder, settings or ""))
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        pipeline: MulosdPipeline,
        prompt: str,
        seed: int,
        decoder: str = "mulo",
        settings: str = "",
        guidance: float = OWN_GUIDANCE,
        size: int = OWN_SIZE,
        batch_size: int = 1,
    ) -> io.NodeOutput:
        progress = ComfyAPISync().execution

        def show(pipe: MulosdPipeline, step: int, timestep: int, state: dict[str, Any]) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            if state["updated"]:
                known = [float((tokens >= 0).float().mean()) for tokens in state["latents"]]
                newest = state["images"][state["updated"][-1]]
                progress.set_progress(sum(known), len(known), preview_image=newest)

        out = pipeline(
            prompt,
            seed=seed,
            num_images_per_prompt=batch_size,
            decoder=spelling(decoder, settings),
            guidance_scale=None if guidance < 0 else guidance,
            height=size or None,
            output_type="np",
            callback_on_step_end=show,
        )
        lines = [f"seed {number}: {stats}" for number, stats in zip(out.seeds, out.stats, strict=True)]
        return io.NodeOutput(torch.from_numpy(out.images), "\n".join([*out.warnings, *lines]))


def spelling(decoder: str, settings: str) -> str:
    """The text of a decoder with its settings."""
    return ":".join(part for part in (decoder, settings.strip().strip(":")) if part)
