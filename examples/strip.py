"""The same prompts drawn by serial decoding and by MuLo-SD, a row each, with the seconds an image took.

python examples/strip.py docs/demo.png
"""

from __future__ import annotations

import sys
from statistics import median

from PIL import Image, ImageDraw, ImageFont

import mulosd

PROMPTS = [
    "a cat left of a guitar on a yellow background",
    "a rocket above a house on a blue background",
    "two penguins on a pink background",
    "a panda right of a sunflower on a white background",
    "a frog on a purple background",
    "a car below a tree on an orange background",
]
SIDE, LABEL = 128, 22


def main() -> None:
    path = sys.argv[1] if len(sys.argv) > 1 else "strip.png"
    engine = mulosd.Engine.from_pretrained("emoji")
    decoders = {"Serial": mulosd.Serial(), "MuLo-SD": mulosd.MuloSD()}
    for decoder in decoders.values():
        engine.generate(PROMPTS[0], decoder=decoder)  # whatever is loaded at first use is not timed
    images: dict[str, list[Image.Image]] = {name: [] for name in decoders}
    seconds: dict[str, list[float]] = {name: [] for name in decoders}
    for prompt in PROMPTS:
        for name, decoder in decoders.items():  # in turns: a machine that slows down slows both
            result = engine.generate(prompt, decoder=decoder, seed=7)
            images[name].append(result.images[0].resize((SIDE, SIDE), Image.Resampling.LANCZOS))
            seconds[name].append(result.stats[0].seconds["total"])

    sheet = Image.new("RGB", (SIDE * len(PROMPTS), (SIDE + LABEL) * len(decoders)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for row, name in enumerate(decoders):
        top = row * (SIDE + LABEL)
        draw.text((4, top + 3), f"{name}: {median(seconds[name]):.2f} s an image", fill="black", font=font)
        for column, image in enumerate(images[name]):
            sheet.paste(image, (column * SIDE, top + LABEL))
    sheet.save(path)
    print(f"{path}: " + ", ".join(f"{name} {median(taken):.2f} s" for name, taken in seconds.items()))


if __name__ == "__main__":
    main()
