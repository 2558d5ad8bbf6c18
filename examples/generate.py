"""One image from a sentence, serially and with multi-scale local speculative decoding.

python examples/generate.py "a cat left of a guitar on a yellow background"
"""

from __future__ import annotations

import sys

import mulosd


def main() -> None:
    prompt = sys.argv[1] if len(sys.argv) > 1 else "a cat left of a guitar on a yellow background"
    engine = mulosd.Engine.from_pretrained("emoji")
    for name, decoder in (("serial", mulosd.Serial()), ("mulo", mulosd.MuloSD())):
        result = engine.generate(prompt, decoder=decoder, seed=7)
        result.images[0].save(f"{name}.png")
        print(f"{name}.png  {result.stats[0]}")


if __name__ == "__main__":
    main()
