"""`decode_layers`: every set of instructions against the ops that it is made of, and a row's independence of others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mulosd.kernels import BackendUnavailable, decode_layers, host
from mulosd.kernels.decode_layers import Layer, Stack, Weight

needs_native = pytest.mark.skipif(host.unusable() is not None, reason=str(host.unusable()))
SLOTS = 70


def rand(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weight(n: int, k: int, kind: str, seed: int, *, bias: bool = False) -> Weight:
    w = rand(n, k, seed=seed) / k**0.5
    b = rand(n, seed=seed + 1) if bias else None
    if kind == "int8":
        scale = w.abs().amax(1) / 127
        return Weight((w / scale[:, None]).round().to(torch.int8), scale, b)
    return Weight(w.to(getattr(torch, kind)), None, b)


def stack(
    kind: str = "float32", heads: int = 4, kv_heads: int = 4, dim: int = 32, *, parts: str = "rotary", rows: int = 3
) -> Stack:
    """Two layers over caches that hold numbers in every slot."""
    width, ffn = 48, 80
    cache_type = torch.bfloat16 if kind == "bfloat16" else torch.float32
    layers = []
    for i in range(2):
        seed = 100 * i
        norms = [1 + 0.1 * rand(dim, seed=seed + j) for j in (20, 21)] if "qk_norm" in parts else [None, None]
        norms += [1 + 0.1 * rand(width, seed=seed + j) for j in (22, 23)] if "sandwich" in parts else [None, None]
        layers.append(
            Layer(
                weight((heads + 2 * kv_heads) * dim, width, kind, seed + 1, bias="bias" in parts),
                weight(width, heads * dim, kind, seed + 3),
                weight(2 * ffn, width, kind, seed + 5),
                weight(width, ffn, kind, seed + 7),
                1 + 0.1 * rand(width, seed=seed + 9),
                1 + 0.1 * rand(width, seed=seed + 10),
                rand(rows, SLOTS, kv_heads, dim, seed=seed + 11).to(cache_type),
                rand(rows, SLOTS, kv_heads, dim, seed=seed + 12).to(cache_type),
                *norms,
            )
        )
    angle = rand(SLOTS, dim // 2, seed=7)
    table = torch.stack([angle.cos(), angle.sin()], dim=-1) if "rotary" in parts else None
    return Stack(tuple(layers), heads, 1e-5, table)


def exact(s: Stack, x: Tensor, slots: Tensor, valid: Tensor | None, kv_len: int, first_row: int) -> Tensor:
    """The definition in float64, slot by slot, without code of the package; caches are not changed."""

    def linear(w: Weight, t: Tensor) -> Tensor:
        m = w.weight.double() if w.scale is None else w.weight.double() * w.scale.double()[:, None]
        return t @ m.T + (0 if w.bias is None else w.bias.double())

    def norm(t: Tensor, factor: Tensor) -> Tensor:
        return t * (t.square().mean(-1, keepdim=True) + s.eps).rsqrt() * factor.double()

    def turned(t: Tensor, slot: int) -> Tensor:
        if s.rotary is None:
            return t
        cos, sin = s.rotary[slot].double().unbind(-1)
        a, b = t[..., 0::2], t[..., 1::2]
        return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)

    x = x.double()
    for layer in s.layers:
        kv_heads, dim = layer.k_cache.shape[2:]
        keys, values = layer.k_cache.double().clone(), layer.v_cache.double().clone()
        fused = linear(layer.wqkv, norm(x, layer.attention_norm)).unflatten(-1, (-1, dim))
        q, k, v = fused.split((s.heads, kv_heads, kv_heads), dim=2)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = norm(q, layer.q_norm), norm(k, layer.k_norm)
        attended = torch.zeros_like(q)
        for b, row in enumerate(slots.tolist()):
            for t, slot in enumerate(row):
                keys[first_row + b, slot] = turned(k[b, t], slot)
                values[first_row + b, slot] = v[b, t]
            for t, slot in enumerate(row):
                seen = torch.arange(SLOTS) <= slot
                seen &= torch.arange(SLOTS) < kv_len
                if valid is not None:
                    seen &= valid[b]
                if not seen.any():
                    continue
                own = turned(q[b, t], slot)
                group = s.heads // kv_heads
                for h in range(s.heads):
                    scores = keys[first_row + b, seen, h // group] @ own[h] / dim**0.5
                    attended[b, t, h] = scores.softmax(0) @ values[first_row + b, seen, h // group]
        added = linear(layer.wo, attended.flatten(-2))
        x = x + (added if layer.attention_out_norm is None else norm(added, layer.attention_out_norm))
        gate, up = linear(layer.w13, norm(x, layer.ffn_norm)).chunk(2, -1)
        added = linear(layer.w2, gate * gate.sigmoid() * up)
        x = x + (added if layer.ffn_out_norm is None else norm(added, layer.ffn_out_norm))
    return x


CASES = [
    # slots [rows, Q], kind, heads, kv_heads, head dim, parts, with hidden slots
    ([[0]], "float32", 4, 4, 16, "rotary", False),
    ([[40], [40]], "float32", 4, 4, 64, "rotary", False),
    ([[69], [3]], "float32", 4, 2, 32, "rotary bias qk_norm", True),
    ([[8, 5, 31], [8, 5, 31]], "float32", 6, 2, 16, "rotary bias sandwich", True),
    ([[9, 4, 30], [9, 4, 30]], "float32", 2, 1, 80, "", True),
    ([[*range(16)]], "float32", 4, 4, 16, "rotary", False),
    ([[50], [50]], "bfloat16", 4, 4, 64, "rotary", False),
    ([[50], [50]], "int8", 4, 4, 64, "rotary bias", False),
    ([[50], [50]], "bfloat16", 4, 4, 64, "rotary sandwich", False),
    ([[7, 60, 12, 13, 14]], "int8", 4, 2, 16, "rotary", True),
]


@needs_native
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_host_kernel_is_the_definition(
    case: tuple[list[list[int]], str, int, int, int, str, bool], threads: int
) -> None:
    where, kind, heads, kv_heads, dim, parts, hidden = case
    slots = torch.tensor(where)
    s = stack(kind, heads, kv_heads, dim, parts=parts)
    first_row = 3 - len(slots)
    x = rand(*slots.shape, 48, seed=5)
    valid = rand(len(slots), SLOTS, seed=6) > 0 if hidden else None
    kv_len = int(slots.max()) + 1
    expected = exact(s, x, slots, valid, kv_len, first_row)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out = decode_layers(x, s, slots, valid, kv_len=kv_len, first_row=first_row, backend="cpu")
    finally:
        torch.set_num_threads(before)
    error = 2e-2 if kind == "bfloat16" else 2e-5  # keys and values are rounded to the type of the cache
    torch.testing.assert_close(out.double(), expected, atol=error, rtol=error)


@pytest.mark.parametrize("case", CASES[:5])
def test_the_reference_is_the_definition(case: tuple[list[list[int]], str, int, int, int, str, bool]) -> None:
    where, kind, heads, kv_heads, dim, parts, hidden = case
    slots = torch.tensor(where)
    s = stack(kind, heads, kv_heads, dim, parts=parts)
    x = rand(*slots.shape, 48, seed=5)
    valid = rand(len(slots), SLOTS, seed=6) > 0 if hidden else None
    expected = exact(s, x, slots, valid, int(slots.max()) + 1, 0)
    out = decode_layers(x, s, slots, valid, kv_len=int(slots.max()) + 1, backend="torch")
    torch.testing.assert_close(out.double(), expected, atol=2e-5, rtol=2e-5)


@needs_native
def test_caches_hold_what_the_reference_writes_and_nothing_else_changes() -> None:
    slots = torch.tensor([[5, 9], [5, 9]])
    x = rand(2, 2, 48, seed=5)
    one, other = stack(dim=16), stack(dim=16)
    decode_layers(x, one, slots, kv_len=10, first_row=1, backend="cpu")
    decode_layers(x, other, slots, kv_len=10, first_row=1, backend="torch")
    for a, b, old in zip(one.layers, other.layers, stack(dim=16).layers, strict=True):
        torch.testing.assert_close(a.k_cache, b.k_cache, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(a.v_cache, b.v_cache, atol=1e-5, rtol=1e-5)
        untouched = torch.ones(3, SLOTS, dtype=torch.bool)
        untouched[1:, [5, 9]] = False
        assert torch.equal(a.k_cache[untouched], old.k_cache[untouched])
        assert torch.equal(a.v_cache[untouched], old.v_cache[untouched])


@needs_native
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_a_row_is_the_same_bits_alone_and_beside_others(kind: str) -> None:
    slots = torch.tensor([[33], [33], [12]])
    x = rand(3, 1, 48, seed=5)
    together = decode_layers(x, stack(kind), slots, kv_len=34, backend="cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for row in range(3):
            alone = decode_layers(
                x[row : row + 1], stack(kind), slots[row : row + 1], kv_len=34, first_row=row, backend="cpu"
            )
            assert torch.equal(alone[0], together[row])
    finally:
        torch.set_num_threads(before)


@needs_native
@pytest.mark.parametrize("isa", ["avx512", "avx2", "generic"])
def test_every_set_of_instructions_gives_the_product(isa: str) -> None:
    if isa not in host.module().isas():
        pytest.skip(f"this CPU has no {isa}")
    x, norm, added = rand(7, 160, seed=1), 1 + 0.1 * rand(160, seed=3), rand(7, 19, seed=4)
    for kind in ("float32", "bfloat16", "int8"):
        layer = weight(38, 160, kind, 2, bias=True)
        out = torch.full((7, 19), torch.nan)
        host.module().linear(
            host.linear_args(*layer),
            [x.data_ptr(), norm.data_ptr(), added.data_ptr(), out.data_ptr()],
            [160, 19, 7],
            1e-5,
            True,
            2,
            isa,
        )
        exact = layer.weight.double() * (1 if layer.scale is None else layer.scale.double()[:, None])
        h = x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt() * norm
        gate, value = (h @ exact.T + layer.bias).chunk(2, -1)
        torch.testing.assert_close(out.double(), gate * gate.sigmoid() * value + added, atol=2e-5, rtol=2e-5)


@needs_native
def test_numbers_that_are_none_come_out_as_such() -> None:
    x = rand(1, 1, 48, seed=5)
    x[0, 0, 3] = torch.nan
    assert decode_layers(x, stack(), torch.tensor([[4]]), kv_len=5, backend="cpu").isnan().all()


@needs_native
def test_what_does_not_fit_is_declined_with_a_reason() -> None:
    many = torch.arange(17)[None]
    with pytest.raises(BackendUnavailable, match="1 to 16 tokens are served, got 17"):
        decode_layers(rand(1, 17, 48, seed=1), stack(), many, kv_len=17, backend="cpu")
    with pytest.raises(BackendUnavailable, match="multiples of 16, got 24"):
        decode_layers(rand(1, 1, 48, seed=1), stack(dim=24), torch.tensor([[0]]), kv_len=1, backend="cpu")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"x": torch.zeros(1, 1, 47)}, r"x must be \[rows, Q, dim\]"),
        ({"slots": torch.tensor([[5]])}, r"slots must be in \[0, kv_len\)"),
        ({"slots": torch.tensor([[1]], dtype=torch.int32)}, "int64"),
        ({"kv_len": 71}, r"kv_len must be in \[1, S\]"),
        ({"first_row": 3}, "first_row must be in"),
        ({"valid": torch.ones(1, 5, dtype=torch.bool)}, "valid must be bool"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, object], word: str) -> None:
    arguments = {"x": torch.zeros(1, 1, 48), "stack": stack(), "slots": torch.tensor([[2]]), "kv_len": 4} | change
    with pytest.raises(ValueError, match=word):
        decode_layers(**arguments)  # type: ignore[arg-type]
