"""The real sizes of LlamaGen and Tar with random weights: seconds, forwards and peak memory of several decoders.

Random weights reject nearly all drafts, so MuLo-SD runs with planted acceptance: tau 0 accepts everything, and
`--rejected SHARE` calibrates tau to that share on the very draft that is verified.

    python benchmarks/real_sizes.py --models gpt-b --pixels 256 --serial-tokens 32       # a CPU, the plain loop beside
    python benchmarks/real_sizes.py --device cuda --dtype bfloat16 --json out.json
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mulosd.engine.calibrate import calibrate
from mulosd.engine.conditioning import CaptionConditioner, ClassConditioner, Condition, Conditioner, DialectConditioner
from mulosd.engine.decoding import DraftOnly, MuloSD, Serial, ZipAR
from mulosd.engine.engine import DTYPES, Engine
from mulosd.engine.family import Family
from mulosd.engine.models.ar_dtok import ARDTok, ARDTokConfig
from mulosd.engine.models.ar_model import ARModel
from mulosd.engine.models.llamagen import LlamaGen, LlamaGenConfig
from mulosd.engine.models.rope import apply_rotary
from mulosd.engine.models.ta_tok import TATok, TATokConfig
from mulosd.engine.models.vq import VQ, VQConfig
from mulosd.engine.scheduler import SchedulerConfig
from mulosd.eval.machine import commit, device_name, versions

VOCAB = 16384
SIZES = {"gpt-b": (12, 12, 768, 2048), "gpt-xl": (36, 20, 1280, 3584), "ar-dtok-lp": (30, 20, 1280, 3584)}
PAIRS = {"gpt-b": [256], "gpt-xl": [512], "ar-dtok-lp": [512, 1024]}


def ar_model(name: str, grid: int, dtype: torch.dtype) -> ARModel:
    """A model of random weights, scaled so that activations stay near one."""
    layers, heads, dim, ffn = SIZES[name]
    with torch.device("meta"):
        model: ARModel
        if name == "ar-dtok-lp":
            model = ARDTok(ARDTokConfig(VOCAB, dim, layers, heads, ffn, 728 + grid * grid, 729, (grid,)))
        elif name == "gpt-b":
            model = LlamaGen(LlamaGenConfig("class", VOCAB, dim, layers, heads, ffn, (grid,)))
        else:
            model = LlamaGen(LlamaGenConfig("caption", VOCAB, dim, layers, heads, ffn, (grid,), 120))
    model = model.to_empty(device="cpu").to(dtype)
    for key, tensor in model.state_dict().items():
        tensor.normal_(std=0.02) if tensor.dim() > 1 else tensor.fill_(1.0)
        if key == "output.weight":
            tensor.mul_(3)
    return model


def family(name: str, pixels: int, drafter: int, dtype: torch.dtype) -> Family:
    grids = sorted({pixels // 16, drafter // 16})
    torch.manual_seed(0)
    conditioner: Conditioner = CaptionConditioner()
    if name == "gpt-b":
        conditioner = ClassConditioner(1000)
    elif name == "ar-dtok-lp":
        conditioner = DialectConditioner(729, TATok(TATokConfig(codebook_size=64)))
    tokenizer: nn.Module = VQ(VQConfig())
    return Family({"name": name}, tokenizer, conditioner, [ar_model(name, g, dtype) for g in grids], {})


def condition(made: Family) -> Condition:
    conditioner = made.conditioner
    if isinstance(conditioner, ClassConditioner):
        return made.condition(["88"])
    if isinstance(conditioner, CaptionConditioner):
        return conditioner.padded([torch.randn(20, 2048)])
    return conditioner.precomputed(torch.randint(64, (1, 729)))


class EagerLoop:
    """The plain loop of LlamaGen's public code: a static cache, and attention over its whole length by a mask."""

    def __init__(self, model: ARModel, grid: int) -> None:
        c = model.config
        self.model, self.length = model, -(-(c.cond_len + grid * grid) // 8) * 8
        weight = model.output.weight
        shape = (2, c.n_heads, self.length, c.head_dim)
        self.cache = [(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in range(c.n_layers)]
        self.mask = torch.ones(self.length, self.length, dtype=torch.bool, device=weight.device).tril()
        table = model.rotary(grid)
        self.table = None if table is None else F.pad(table, (0, 0, 0, 0, 0, self.length - len(table)))

    def step(self, x: Tensor, slots: Tensor) -> Tensor:
        """Logits [2, V] behind embeddings x [2, n, dim] at slots [n]."""
        for block, (keys, values) in zip(self.model.blocks, self.cache, strict=True):
            heads = (3, block.n_heads, block.head_dim)
            q, k, v = F.linear(block.attention_norm(x), block.wqkv.weight).unflatten(-1, heads).unbind(2)
            if self.table is not None:
                q, k = apply_rotary(q, self.table[slots]), apply_rotary(k, self.table[slots])
            keys[:, :, slots], values[:, :, slots] = k.transpose(1, 2), v.transpose(1, 2)
            o = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=self.mask[slots])
            x = x + F.linear(o.transpose(1, 2).flatten(-2), block.wo.weight)
            gate, up = (F.linear(block.ffn_norm(x), w) for w in block.w13.weight.chunk(2))
            x = x + F.linear(F.silu(gate) * up, block.w2.weight)
        return F.linear(self.model.norm(x[:, -1]), self.model.output.weight).float()

    def draw(self, features: Tensor, count: int) -> float:
        """Draw tokens with guidance; returns seconds a token, the prefix left out."""
        model, device = self.model, features.device
        prefix = model.embed_prefix(features, 0)
        logits = self.step(prefix, torch.arange(prefix.shape[1], device=device))
        begun = time.perf_counter()
        for i in range(count):
            mixed = logits[1] + 4.0 * (logits[0] - logits[1])
            kept = mixed.topk(1000).values[-1]
            p = mixed.masked_fill(mixed < kept, -torch.inf).softmax(dim=-1)
            token = torch.multinomial(p, 1)
            x = model.tok_embeddings(token).expand(2, 1, -1)
            logits = self.step(x, torch.tensor([prefix.shape[1] + i], device=device))
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - begun) / count


def serial_seconds(engine: Engine, given: Condition, grid: int, count: int) -> float:
    """Seconds a token of the engine's serial decoder, prefix and picture left out: steps of the scheduler."""
    flight = engine._flight("x", 1, Serial(grid), sampling_of(engine), None, given)
    with torch.inference_mode():
        engine.scheduler.add(flight.request, Serial(grid))
        for _ in range(3):
            engine.scheduler.step()
        begun = time.perf_counter()
        for _ in range(count):
            engine.scheduler.step()
        if engine.family.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - begun) / count
    engine.scheduler.clear()
    return seconds


def sampling_of(engine: Engine) -> Any:
    return replace(engine.family.sampling, cfg_scale=4.0, top_k=1000)


def measure(name: str, pixels: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    dtype, device = DTYPES[arguments.dtype], arguments.device
    made = family(name, pixels, pixels // arguments.scale, dtype)
    config = SchedulerConfig(collapse_prefix=arguments.collapse_prefix and made.ar.zero_prefix)
    engine = Engine(made, device=device, dtype=dtype, config=config)
    given = condition(made)
    grid = pixels // 16
    rows: list[dict[str, Any]] = []

    def row(**values: Any) -> None:
        rows.append({"model": name, "pixels": pixels, "dtype": arguments.dtype, **values})
        print(json.dumps(rows[-1]))

    if arguments.serial_tokens:
        with torch.inference_mode():
            pair = torch.cat([given.features, made.null_features(1)]).to(made.device)
            for _ in range(arguments.repeats):
                eager = EagerLoop(made.ar, grid).draw(pair, arguments.serial_tokens)
                own = serial_seconds(engine, given, grid, arguments.serial_tokens)
                row(decoder="serial steps", seconds_a_token=own, eager_loop=eager, ratio=eager / own)
        return rows
    tau = None
    if arguments.rejected:
        found = calibrate(
            engine,
            ["x"],
            rejection=arguments.rejected,
            scale=arguments.scale,
            sampling=sampling_of(engine),
            features=given,
        )
        tau = found.tau
    decoders: list[Any] = [Serial(), ZipAR(window=16), DraftOnly(scale=arguments.scale)]
    for planted in (0.0, tau):
        if planted is not None:
            decoders.append(MuloSD(scale=arguments.scale, tau=planted, radius=1, pool=10, window=16))
    for decoder in decoders:
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        stats = engine.generate("x", decoder=decoder, sampling=sampling_of(engine), features=given).stats[0]
        peak = None if device == "cpu" else torch.cuda.max_memory_allocated()
        row(decoder=decoder.name, settings=stats.settings, forwards=stats.forwards, seconds=stats.seconds, peak=peak)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="gpt-xl,ar-dtok-lp", help=", ".join(SIZES))
    parser.add_argument("--pixels", type=int, help="one size instead of those of each model")
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--rejected", type=float, default=0.02, help="planted share of rejected tokens; 0 is none")
    parser.add_argument(
        "--serial-tokens", type=int, default=0, help="time only so many serial steps, and the plain loop"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--collapse-prefix", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for name in arguments.models.split(","):
        for pixels in [arguments.pixels] if arguments.pixels else PAIRS[name]:
            rows += measure(name, pixels, arguments)
    if arguments.json:
        name = device_name(torch.device(arguments.device))
        machine = {"device": name, "versions": versions(), "commit": commit()}
        arguments.json.write_text(json.dumps({**machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
