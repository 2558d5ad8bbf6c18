"""What is measured: each op at its shapes, with an oracle, a measure of error, and peers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import kernels
from ...kernels import masks
from . import floors, peers
from .floors import Work
from .peers import Build, Call

EXACT = {torch.float32: 2e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}


@dataclass(frozen=True)
class Problem:
    """Tensors of a case on their device, and what to do with them.

    Args:
        run: backend name -> a call of the op by that backend.
        error: result of any call, ours or a peer's -> its distance from the oracle.
        tolerance: errors above it are failures.
        peers: name -> what gives a call of a peer; it may raise `peers.Unavailable`.
    """

    run: Callable[[str], Call]
    error: Callable[[Any], float]
    tolerance: float
    peers: dict[str, Build] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """An op at a shape; `make` builds the tensors when its turn comes."""

    op: str
    shape: str
    dtype: torch.dtype
    work: Work
    make: Callable[[torch.device], Problem]


def rand(device: torch.device, dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device, dtype=dtype)


def attention(B: int, heads: int, dim: int, Q: int, L: int, dtype: torch.dtype) -> Case:
    """A raster-causal draft block of Q tokens after L - Q committed ones."""

    def make(device: torch.device) -> Problem:
        q = rand(device, dtype, B, Q, heads, dim, seed=1)
        k, v = (rand(device, dtype, B, L, heads, dim, seed=seed) for seed in (2, 3))
        slots = (L - Q + torch.arange(Q, device=device)).expand(B, Q)
        words = masks.pack(masks.raster_causal(Q, device))
        visible = F.pad(masks.unpack(words, Q), (L - Q, 0), value=True)
        options: dict[str, Any] = {"kv_len": L - Q, "start": L - Q, "block": words[None]}

        def oracle(row: int) -> Tensor:
            scores = torch.einsum("qhd,khd->hqk", q[row].float(), k[row].float()) * dim**-0.5
            return torch.einsum("hqk,khd->qhd", scores.masked_fill(~visible, -torch.inf).softmax(-1), v[row].float())

        rows = sorted({0, B - 1})
        expected = {row: oracle(row) for row in rows}
        return Problem(
            lambda backend: lambda: kernels.verify_attention(q, k, v, slots, **options, backend=backend),
            lambda out: max(float((out[row].float() - expected[row]).abs().max()) for row in rows),
            EXACT[dtype],
            peers.attention(q, k, v, visible),
        )

    work = floors.attention(B, heads, heads, dim, Q, L, dtype.itemsize)
    return Case("verify_attention", f"B{B} H{heads}x{dim} Q{Q} KV{L}", dtype, work, make)


def kv_write(B: int, heads: int, dim: int, Q: int, L: int, dtype: torch.dtype) -> Case:
    """Q tokens at scattered slots of a cache of L."""

    def make(device: torch.device) -> Problem:
        q, k, v = (rand(device, dtype, B, Q, heads, dim, seed=seed) for seed in (1, 2, 3))
        caches = [torch.zeros(B, L, heads, dim, dtype=dtype, device=device) for _ in range(2)]
        order = torch.rand(B, L, generator=torch.Generator(device).manual_seed(4), device=device).argsort(dim=1)
        slots = order[:, :Q]
        angle = torch.rand(L, dim // 2, device=device)
        table = torch.stack([angle.cos(), angle.sin()], dim=-1)
        row = torch.arange(B, device=device)[:, None]
        cos, sin = table[slots].double().unsqueeze(2).unbind(-1)

        def turned(x: Tensor) -> Tensor:
            a, b = x.double().unflatten(-1, (-1, 2)).unbind(-1)
            return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)

        def error(out: Tensor) -> float:
            pairs = ((out, turned(q)), (caches[0][row, slots], turned(k)), (caches[1][row, slots], v.double()))
            found = max(float((got - want).abs().max()) for got, want in pairs)
            for cache in caches:
                cache.zero_()
            return found

        return Problem(
            lambda backend: lambda: kernels.kv_write(q, k, v, slots, table, *caches, backend=backend),
            error,
            EXACT[dtype],
            peers.kv_write(q, k, v, slots, table, caches),
        )

    work = floors.kv_write(B, Q, heads, heads, dim, dtype.itemsize, dtype.itemsize)
    return Case("kv_write", f"B{B} H{heads}x{dim} Q{Q} KV{L}", dtype, work, make)


def linear(R: int, K: int, N: int, dtype: torch.dtype, *, gated: bool = False, quantised: bool = False) -> Case:
    """A norm, a product with weights of `dtype` or int8, and SwiGLU or a residual, for R tokens."""
    width = N // 2 if gated else N

    def make(device: torch.device) -> Problem:
        x, norm = rand(device, dtype, R, K, seed=1), 1 + rand(device, dtype, K, seed=2) / 8
        weight, residual = rand(device, dtype, N, K, seed=3) / K**0.5, rand(device, dtype, R, width, seed=4)
        options: dict[str, Any] = {"norm": norm, "gated": gated, "residual": residual}
        held = weight.double()
        if quantised:
            scale = weight.abs().amax(1).float() / 127
            weight = (weight.float() / scale[:, None]).round().to(torch.int8)
            options["scale"], held = scale, weight.double() * scale.double()[:, None]

        def oracle() -> Tensor:
            h = x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt() * norm.double()
            out = h @ held.T
            if gated:
                gate, value = out.chunk(2, -1)
                out = F.silu(gate) * value
            return out + residual.double()

        expected = oracle()
        return Problem(
            lambda backend: lambda: kernels.fused_linear(x, weight, **options, backend=backend),
            lambda out: float((out.double() - expected).abs().max()),
            EXACT[dtype],
            {},
        )

    kind = "int8" if quantised else "same"
    shape = f"R{R} {K}->{N} {'gated ' if gated else ''}{kind}"
    work = floors.fused_linear(R, K, N, dtype.itemsize, 1 if quantised else dtype.itemsize, gated)
    return Case("fused_linear", shape, dtype, work, make)


def sample(R: int, V: int, top_k: int, dtype: torch.dtype) -> Case:
    """One token of each of R rows of guided logits."""
    options: dict[str, Any] = {"cfg_scale": 4.0, "temperature": 1.0, "top_k": top_k}

    def make(device: torch.device) -> Problem:
        cond, uncond = (rand(device, dtype, R, V, seed=seed) for seed in (1, 2))
        ids = torch.arange(R, device=device)
        noise = kernels.gumbel(ids, ids, V, 0)
        whole = uncond.double() + options["cfg_scale"] * (cond.double() - uncond.double())
        # Rounding may take another entry for the k-th largest: whatever comes that near is in.
        kept = whole >= whole.topk(min(top_k or V, V), dim=1).values[:, -1:] - 1e-3

        def ours(token: Tensor) -> float:
            """How far the chosen scores lie below the best ones."""
            score = torch.where(kept, whole + noise, -torch.inf)
            return float((score.amax(1) - score.gather(1, token.view(-1, 1))[:, 0]).clamp(min=0).max())

        def error(result: Any) -> float:
            # A peer with noise of its own can only be asked for a token among the top k.
            token = result.token if isinstance(result, peers.Drawn) else result
            if ((token < 0) | (token >= V)).any():
                return torch.inf
            if isinstance(result, peers.Drawn):
                return float((~kept.gather(1, token.view(-1, 1))).sum())
            return ours(token)

        return Problem(
            lambda backend: lambda: kernels.local_resample(cond, uncond, noise, backend=backend, **options),
            error,
            2e-3,
            peers.sample(cond, uncond, noise, options["cfg_scale"], top_k),
        )

    work = floors.sample(R, V, dtype.itemsize, guided=True, noise=True)
    return Case("local_resample", f"R{R} V{V} top-k {top_k}", dtype, work, make)


def pooled(R: int, V: int, k: int, dtype: torch.dtype) -> Case:
    """The mass of k neighbours of each of R draft tokens under guided logits."""
    scale = 4.0

    def make(device: torch.device) -> Problem:
        cond, uncond = (rand(device, dtype, R, V, seed=seed) for seed in (1, 2))
        generator = torch.Generator(device).manual_seed(3)
        # A table of random distinct codes; nearest ones would take V**2 products to find and cost the same to use.
        offsets = torch.randperm(V, generator=generator, device=device)[:k]
        table = ((torch.arange(V, device=device)[:, None] + offsets) % V).int()
        tokens = torch.randint(V, (R,), generator=generator, device=device)
        logits = uncond.double() + scale * (cond.double() - uncond.double())
        expected = logits.softmax(1).gather(1, table[tokens].long()).sum(1)

        def run(backend: str) -> Call:
            return lambda: (
                kernels.pooled_mass(cond, uncond, tokens, table, tau=0.1, cfg_scale=scale, backend=backend).mass
            )

        return Problem(
            run,
            lambda mass: float((mass - expected).abs().max()),
            1e-4,
            peers.pooled(cond, uncond, tokens, table, scale),
        )

    work = floors.pooled_mass(R, V, k, dtype.itemsize, guided=True)
    return Case("pooled_mass", f"R{R} V{V} k{k}", dtype, work, make)


def nearest(N: int, V: int, d: int, dtype: torch.dtype) -> Case:
    """The nearest of V codes to each of N features."""

    def make(device: torch.device) -> Problem:
        features = F.normalize(rand(device, dtype, N, d, seed=1), dim=-1)
        codebook = F.normalize(rand(device, dtype, V, d, seed=2), dim=-1)

        def error(token: Tensor) -> float:
            """How much less similar the chosen codes are than the best ones."""
            worst = 0.0
            for part, chosen in zip(features.split(1024), token.view(-1).split(1024), strict=True):
                cosine = part.double() @ codebook.double().T
                worst = max(worst, float((cosine.amax(1) - cosine.gather(1, chosen[:, None])[:, 0]).max()))
            return worst

        return Problem(
            lambda backend: lambda: kernels.nearest_code(features, codebook, backend=backend),
            error,
            {torch.float32: 1e-5}.get(dtype, 2e-2),
            peers.nearest(features, codebook),
        )

    return Case("nearest_code", f"N{N} V{V} d{d}", dtype, floors.nearest_code(N, V, d, dtype.itemsize), make)


def islands(B: int, side: int, window: int | None) -> Case:
    """Maps with two rejected cells in a hundred, radius 1."""

    def make(device: torch.device) -> Problem:
        rejected = torch.rand(B, side, side, generator=torch.Generator().manual_seed(0)) < 0.02
        expected = kernels.expand_islands(rejected, 1, window, backend="torch")
        on_device = rejected.to(device)

        def error(result: Any) -> float:
            return float(sum(int((a.cpu() != b).sum()) for a, b in zip(result, expected, strict=True)))

        return Problem(
            lambda backend: lambda: kernels.expand_islands(on_device, 1, window, backend=backend), error, 0.0
        )

    shape = f"B{B} {side}x{side} window {window or 'none'}"
    return Case("expand_islands", shape, torch.bool, floors.expand_islands(B, side, side), make)


def cases(device: torch.device, quick: bool) -> list[Case]:
    """The shapes of a device: a few small ones for a CPU, the whole table for a GPU, and a part of it when quick."""
    return list(gpu_cases(quick) if device.type == "cuda" else cpu_cases(quick))


def cpu_cases(quick: bool) -> Iterator[Case]:
    f32 = torch.float32
    for Q, L in [(32, 1024)] if quick else [(1, 1024), (32, 1024), (64, 1024), (64, 4096), (256, 2048)]:
        yield attention(2, 20, 64, Q, L, f32)
        yield kv_write(2, 20, 64, Q, L, f32)
    for R in [2] if quick else [2, 16]:
        yield linear(R, 768, 4096, f32, gated=True)
        yield linear(R, 768, 4096, f32, gated=True, quantised=True)
    for R in [16] if quick else [2, 64]:
        yield sample(R, 16384, 1000, f32)
        yield pooled(R, 16384, 100, f32)
        yield nearest(4 * R, 16384, 8, f32)
    for side, window in [(16, 2)] if quick else [(16, 2), (64, None), (64, 3)]:
        yield islands(1, side, window)


def gpu_cases(quick: bool) -> Iterator[Case]:
    half = torch.bfloat16
    heads = [(20, 64), (24, 64), (32, 128)]
    queries, lengths = (1, 32, 64, 128, 256, 1024), (1024, 2048, 4096)
    if quick:
        shapes = [(2, 20, 64, Q, 4096) for Q in (1, 64, 256)]
    else:
        shapes = [(B, *hd, Q, L) for hd, B, Q, L in itertools.product(heads, (2, 16, 64), queries, lengths)]
    for shape in shapes:
        yield attention(*shape, half)
    for B, Q in [(2, 64)] if quick else itertools.product((2, 16, 64), queries):
        yield kv_write(B, 20, 64, Q, 4096, half)
    # The layers of LlamaGen-XL.
    for R in [2] if quick else [2, 16, 64]:
        for quantised in (False, True):
            yield linear(R, 1280, 3840, half, quantised=quantised)
            yield linear(R, 1280, 1280, half, quantised=quantised)
            yield linear(R, 1280, 6912, half, gated=True, quantised=quantised)
            yield linear(R, 3456, 1280, half, quantised=quantised)
    logits = [(16384, 1000, 64)] if quick else itertools.product((16384, 65536), (0, 1000), (2, 64, 512))
    for V, top_k, R in logits:
        yield sample(R, V, top_k, half)
        yield pooled(R, V, 100, half)
    for V, N in [(16384, 4096)] if quick else itertools.product((16384, 65536), (1024, 4096, 65536)):
        yield nearest(N, V, 8, half)
    for B, side, window in [(1, 64, 3)] if quick else itertools.product((1, 16, 64), (16, 32, 64), (None, 3)):
        yield islands(B, side, window)
