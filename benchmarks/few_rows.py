"""Few rows through a linear layer on the CPU: `x @ W.T` beside `(W @ x.T).T`.

The weights of one pass are larger than any cache, so the figure is the speed at which they are read.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

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


if __name__ == "__main__":
    main()
