"""Few rows through a linear layer on the CPU: `x @ W.T` beside `(W @ x.T).T`; with --quantization, int8 beside float.

The weights of one pass are larger than any cache, so the figure is the speed at which they are read.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from mulosd.engine.models.linear import Linear
from mulosd.engine.models.quantized import QuantizedLinear

BYTES = 2e8


def seconds(call: Callable[[], object], repeats: int = 5) -> float:
    call()
    found = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    return min(found)


def main() -> None:
    print(f"{torch.get_num_threads()} threads\nout in rows  GB/s  GB/s swapped")
    for out, into in ((2304, 768), (768, 2048), (4096, 768), (16384, 768)):
        weights = [torch.randn(out, into) for _ in range(max(1, int(BYTES / (4 * out * into))))]
        size = sum(w.nbytes for w in weights) / 1e9
        with torch.inference_mode():
            for rows in (2, 3, 4, 8, 16):
                x = torch.randn(rows, into)
                usual = seconds(lambda x=x, weights=weights: [F.linear(x, w) for w in weights])
                swapped = seconds(lambda x=x, weights=weights: [(w @ x.t()).t().contiguous() for w in weights])
                print(f"{out:5d} {into:5d} {rows:4d} {size / usual:6.1f} {size / swapped:6.1f}")


def quantization() -> None:
    """Microseconds of a layer of float32 and bfloat16 weights and of int8 ones, for float32 inputs."""
    print(f"{torch.get_num_threads()} threads\nout in rows  float32  bfloat16  int8")
    for out, into in ((2304, 768), (768, 2048), (4096, 768)):
        plain = [Linear(into, out) for _ in range(max(1, int(BYTES / (4 * out * into))))]
        narrow = [layer.weight.detach().bfloat16() for layer in plain]
        small = [QuantizedLinear(layer, "int8") for layer in plain]
        with torch.inference_mode():
            for rows in (1, 2, 4, 8, 16, 17, 64, 256):
                x = torch.randn(rows, into)
                usual = seconds(lambda x=x, layers=plain: [layer(x) for layer in layers], 3)
                short = x.bfloat16()
                half = seconds(lambda x=short, weights=narrow: [F.linear(x, w) for w in weights], 3)
                bytewise = seconds(lambda x=x, layers=small: [layer(x) for layer in layers], 3)
                figures = " ".join(f"{1e6 * t / len(plain):8.0f}" for t in (usual, half, bytewise))
                print(f"{out:5d} {into:5d} {rows:4d} {figures}", flush=True)


if __name__ == "__main__":
    quantization() if "--quantization" in sys.argv else main()
