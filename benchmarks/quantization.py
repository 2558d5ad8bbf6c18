"""What weights in 8 bits change in the logits of the bundled families, teacher-forced on an image of `Serial`.

    OMP_NUM_THREADS=1 python benchmarks/quantization.py

For each way to hold the weights: root-mean-square error of the logits as a share of their spread, Kullback-Leibler
divergence from float32 in nats a token, and the share of positions whose best token stays.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mulosd.engine.engine import Engine
from mulosd.engine.family import Family
from mulosd.engine.models.quantized import KINDS, QuantizedLinear


def compared(exact: Tensor, other: Tensor) -> str:
    """Logits [B, n, V] beside those of float32."""
    spread = (exact - exact.mean(-1, keepdim=True)).square().mean().sqrt()
    error = (other - exact).square().mean().sqrt() / spread
    p, q = exact.log_softmax(-1), other.log_softmax(-1)
    divergence = (p.exp() * (p - q)).sum(-1).mean()
    same = (exact.argmax(-1) == other.argmax(-1)).float().mean()
    return f"{float(error):.2%}  {float(divergence):.1e}  {float(same):.1%}"


@torch.inference_mode()
def main() -> None:
    for name in ("emoji", "photo"):
        engine = Engine.from_pretrained(name)
        prompt = engine.family.conditioner.example
        image = engine.generate(prompt, decoder="serial", seed=1).tokens
        condition, grid = engine.family.features([prompt]), image.shape[1]

        def logits(family: Family, dtype: torch.dtype, given: Tensor = condition, image: Tensor = image) -> Tensor:
            cond = given.to(dtype) if given.is_floating_point() else given
            return family.ar(cond, image.flatten(1), image.shape[1]).float()

        exact = logits(engine.family, torch.float32)
        head = engine.family.ar.output.weight.numel() / sum(p.numel() for p in engine.family.ar.parameters())
        print(f"{name}, {grid}x{grid} tokens, the head is {head:.1%} of the weights", flush=True)
        narrow = Family.load(name, dtype=torch.bfloat16).to("cpu", torch.bfloat16)
        print(f"  bfloat16    {compared(exact, logits(narrow, torch.bfloat16))}", flush=True)
        for kind in KINDS:
            family = Family.load(name).quantize(kind)
            print(f"  {kind}        {compared(exact, logits(family, torch.float32))}", flush=True)
            family.ar.output = QuantizedLinear(family.ar.output, kind)  # type: ignore[assignment]
            print(f"  {kind}, head  {compared(exact, logits(family, torch.float32))}", flush=True)


if __name__ == "__main__":
    main()
