"""Several prompts in one batch, with progress, laid side by side in one image.

python examples/batch.py
"""

from __future__ import annotations

from PIL import Image

import mulosd

PROMPTS = [
    "a frog on a green background",
    "two penguins on a pink background",
    "a rocket above a house on a blue background",
    "a house and a tree on a white background",
]


def show(progress: mulosd.Progress) -> None:
    print(f"\r{progress.stage:>10} {progress.done}/{progress.total}   ", end="", flush=True)


def main() -> None:
    engine = mulosd.Engine.from_pretrained("emoji")
    result = engine.generate(PROMPTS, seed=1, progress=show)
    size = result.images[0].width
    sheet = Image.new("RGB", (size * len(result.images), size))
    for column, image in enumerate(result.images):
        sheet.paste(image, (column * size, 0))
    sheet.save("batch.png")
    print(f"\nbatch.png  {result.stats[0]}")


if __name__ == "__main__":
    main()
