"""Images of a bundled family on the CPU by each way of multiplying, in turns in one run.

    python benchmarks/linear_ways.py --threads 1 --decoder serial:grid=16 --engine float32:left --engine float32:native

An engine is TYPE:WAY, TYPE one of float32, bfloat16, int8 and WAY one of auto, torch, left, onednn, native. For each:
the least seconds and CPU seconds an image, CPU time by forward, the floor (its weights over the speed at which this CPU
streams as many bytes, measured in the same run), and the share of tokens that are those of the first engine. Seconds
of a busy machine say little; CPU seconds of one thread say more.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

from mulosd.engine.engine import Engine
from mulosd.measure.ceilings import measured_ceilings
from mulosd.measure.image_floor import weights_of

PROMPT = "a cat left of a guitar on a yellow background"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="emoji")
    parser.add_argument("--decoder", default="serial")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", action="append", metavar="TYPE:WAY")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = arguments.engine or ["float32:torch", "float32:left", "float32:auto", "bfloat16:auto", "int8:auto"]
    engines = {}
    for name in names:
        kind, way = name.split(":")
        settings = {"quantization": "int8"} if kind == "int8" else {"dtype": kind}
        engines[name] = Engine.from_pretrained(arguments.family, device="cpu", linear=way, **settings)
    sizes = {name: weights_of(engine.family.models[-1]).bytes for name, engine in engines.items()}
    ceilings = measured_ceilings(sorted(set(sizes.values())))
    print(ceilings)
    least = {name: [float("inf"), float("inf")] for name in engines}
    results = {}
    for turn in range(arguments.rounds + 1):
        for name, engine in engines.items():
            wall, cpu = time.perf_counter(), time.process_time()
            results[name] = engine.generate(PROMPT, decoder=arguments.decoder, seed=7)
            if turn:  # the first is a warm-up
                took = time.perf_counter() - wall, time.process_time() - cpu
                least[name] = [min(a, b) for a, b in zip(least[name], took, strict=True)]
    first = results[names[0]].tokens
    print("engine            s/image  CPU s  forwards  CPU ms/forward  floor ms  same tokens")
    for name, (wall, cpu) in least.items():
        forwards = sum(results[name].stats[0].forwards.values())
        floor = sizes[name] / ceilings.bandwidth(sizes[name])
        same = (results[name].tokens == first).float().mean()
        each, least_each = 1e3 * cpu / forwards, 1e3 * floor
        print(f"{name:16s} {wall:8.3f} {cpu:6.3f} {forwards:9d} {each:15.3f} {least_each:9.3f} {same:12.3f}")


if __name__ == "__main__":
    sys.exit(main())
