"""A page to draw on with Gradio: the image sharpens from draft to final while it is drawn, and Stop ends the work.

pip install 'gradio>=6'
python examples/gradio_app.py --family emoji --device cpu

It listens to this machine alone. The text of a decoder may name files, so that --host is for people who may read them;
`mulosd serve` is the server for everybody else.
"""

from __future__ import annotations

import argparse
import secrets
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr

import mulosd
from mulosd.canvas import Canvas
from mulosd.engine.decoding import DECODERS
from mulosd.engine.decoding.size import sized
from mulosd.engine.decoding.spec import decoder_of

if TYPE_CHECKING:
    from PIL.Image import Image

# Seconds between two signs of life of a decoder without previews; Stop is heard at such a sign.
PULSE = 0.2
OWN_SIZE = "largest"
PROMPTS = {"emoji": "a cat left of a guitar on a yellow background"}


class Engines:
    """Engines by family, each loaded when it is first asked for.

    Args:
        device: of all of them.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self._loaded: dict[str, mulosd.Engine] = {}
        self._lock = threading.Lock()

    def __getitem__(self, family: str) -> mulosd.Engine:
        with self._lock:
            if family not in self._loaded:
                self._loaded[family] = mulosd.Engine.from_pretrained(family, device=self.device)
            return self._loaded[family]


def draw(
    engine: mulosd.Engine, prompt: str, decoder: str, seed: int, size: int | None
) -> Iterator[tuple[Image | None, str]]:
    """One image as it comes into being: whole previews, None where there is nothing new, with a line about them.

    Leaving the loop ends the work, within a forward.
    """
    chosen = decoder_of(decoder)
    if size is not None:
        chosen = sized(chosen, size, engine.family)
    chosen, _ = engine.resolve(chosen)
    canvas = Canvas(max(chosen.grids(engine.family)) * engine.family.patch, engine.family.patch)
    what, begun, told = "drawing", time.perf_counter(), 0.0
    for met in engine.stream_batch(prompt, decoder=chosen, seed=seed):
        image: Image | None = None
        for _, update in met:
            image = update.image if update.kind == "final" else canvas.paint(update)
            what = str(update.stats) if update.kind == "final" else f"{update.kind}, row {update.row}"
        seconds = time.perf_counter() - begun
        if met or seconds - told > PULSE:
            told = seconds
            yield image, f"seed {seed} · {seconds:.1f} s · {what}"


def page(engines: Engines, family: str = "emoji") -> gr.Blocks:
    """The application. Its function `/draw` can be called by gradio_client as well."""

    def sizes(name: str) -> list[str]:
        return [OWN_SIZE, *(str(size) for size in engines[name].family.image_sizes)]

    def example(name: str) -> str:
        return PROMPTS.get(name, engines[name].family.conditioner.example)

    def changed(name: str) -> tuple[Any, Any]:
        return gr.Dropdown(choices=sizes(name), value=OWN_SIZE), example(name)

    def run(prompt: str, name: str, decoder: str, seed: float, size: str) -> Iterator[tuple[Any, str]]:
        try:
            engine = engines[name]
            for warning in engine.check_prompts([prompt]):
                gr.Warning(warning)
            number = secrets.randbelow(2**32) if seed < 0 else int(seed)
            for image, line in draw(engine, prompt, decoder, number, None if size == OWN_SIZE else int(size)):
                yield gr.skip() if image is None else image, line
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    with gr.Blocks(title="mulosd") as made:
        gr.Markdown("# mulosd\nFast autoregressive image generation: a draft, verified rows, the image.")
        with gr.Row():
            with gr.Column():
                prompt = gr.Textbox(example(family), label="Prompt", lines=2)
                with gr.Row():
                    families = sorted({*mulosd.list_families(), family})
                    name = gr.Dropdown(families, value=family, label="Family")
                    decoder = gr.Dropdown(
                        list(DECODERS), value="mulo", label="Decoder", allow_custom_value=True,
                        info="or a text, such as mulo:scale=4:tau=0.02",
                    )  # fmt: skip
                with gr.Row():
                    seed = gr.Number(-1, label="Seed", precision=0, minimum=-1, info="-1 is random")
                    size = gr.Dropdown(sizes(family), value=OWN_SIZE, label="Size", info="side in px")
                with gr.Row():
                    go = gr.Button("Draw", variant="primary")
                    stop = gr.Button("Stop", variant="stop")
            with gr.Column():
                image = gr.Image(label="Image", format="png", interactive=False, height=420)
                status = gr.Markdown("")
        inputs, outputs = [prompt, name, decoder, seed, size], [image, status]
        # Threads take turns on an engine and share its forwards.
        drawing = gr.on(
            [go.click, prompt.submit],
            run,
            inputs,
            outputs,
            api_name="draw",
            concurrency_limit=4,
            show_progress="hidden",
        )
        stop.click(None, cancels=[drawing]).then(lambda: "stopped", None, status, queue=False, api_name=False)
        name.change(changed, name, [size, prompt], api_name=False)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="emoji", help="a bundled family, or the folder of one")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=7860)
    asked = parser.parse_args()
    page(Engines(asked.device), asked.family).queue(max_size=32).launch(server_name=asked.host, server_port=asked.port)


if __name__ == "__main__":
    main()
