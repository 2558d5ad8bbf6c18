"""What others would use for the same task: pieces of torch, and FlashInfer where it is installed."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

Call = Callable[[], Any]
Build = Callable[[], Call]
MOST_SCORES = 4 << 30  # bytes of materialised scores that a peer may take


class Unavailable(RuntimeError):
    """A peer cannot take part; the message says why."""


class Drawn(NamedTuple):
    """Tokens that a peer drew with noise of its own."""

    token: Tensor


def need_gpu(tensor: Tensor) -> None:
    if not tensor.is_cuda:
        raise Unavailable("only on a GPU")


def need_flashinfer(tensor: Tensor) -> Any:
    """The module flashinfer."""
    need_gpu(tensor)
    if find_spec("flashinfer") is None:
        raise Unavailable("flashinfer is not installed")
    return import_module("flashinfer")


def attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> dict[str, Build]:
    """Peers of `verify_attention`; `visible` is the mask [Q, L]. All give [B, Q, H, D]."""
    batch, queries, heads, dim = q.shape
    length = k.shape[1]
    query, key, value = (x.transpose(1, 2) for x in (q, k, v))

    def dense(backend: SDPBackend) -> Build:
        def build() -> Call:
            if backend == SDPBackend.CUDNN_ATTENTION:
                need_gpu(q)
            if backend == SDPBackend.MATH and 4 * batch * heads * queries * length > MOST_SCORES:
                raise Unavailable("scores of more than 4 GiB")
            # Kernels want rows of an additive mask to start at multiples of 16 elements.
            wide = torch.zeros(queries, -(-length // 16) * 16, dtype=q.dtype, device=q.device)
            mask = wide[:, :length].masked_fill_(~visible, -math.inf)

            def call() -> Tensor:
                with sdpa_kernel(backend):
                    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)

            return call

        return build

    def flex() -> Call:
        need_gpu(q)
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        seen = visible.contiguous()
        blocks = create_block_mask(lambda b, h, i, j: seen[i, j], None, None, queries, length, device=str(q.device))
        compiled = torch.compile(flex_attention, dynamic=False)
        return lambda: compiled(query, key, value, block_mask=blocks).transpose(1, 2)

    def cascade() -> Call:
        """The committed keys without a mask, the draft block with one, joined by their log-sum-exps."""
        need_gpu(q)
        if length == queries:
            raise Unavailable("there is no prefix")
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        tail = visible[:, length - queries :]
        if not torch.equal(tail, tail.new_ones(tail.shape).tril()):
            raise Unavailable("only for a causal draft")
        first, last = ((x[:, :, : length - queries], x[:, :, length - queries :]) for x in (key, value))

        def call() -> Tensor:
            near, near_lse = flash(query, first[1], last[1], 0.0, True)[:2]
            far, far_lse = flash(query, first[0], last[0], 0.0, False)[:2]
            share = torch.sigmoid(near_lse - far_lse)[..., None].to(near.dtype)
            return torch.lerp(far, near, share).transpose(1, 2)

        return call

    def flashinfer() -> Call:
        library = need_flashinfer(q)
        space = torch.empty(256 << 20, dtype=torch.uint8, device=q.device)
        wrapper = library.BatchPrefillWithRaggedKVCacheWrapper(space, "NHD")
        rows = torch.arange(batch + 1, dtype=torch.int32, device=q.device)
        mask = visible.flatten().repeat(batch)
        wrapper.plan(
            rows * queries,
            rows * length,
            heads,
            heads,
            dim,
            custom_mask=mask,
            q_data_type=q.dtype,
            kv_data_type=q.dtype,
        )
        flat = [x.reshape(-1, heads, dim) for x in (q, k, v)]
        return lambda: wrapper.run(*flat).view(q.shape)

    return {
        "sdpa-efficient": dense(SDPBackend.EFFICIENT_ATTENTION),
        "sdpa-cudnn": dense(SDPBackend.CUDNN_ATTENTION),
        "sdpa-math": dense(SDPBackend.MATH),
        "flex": flex,
        "prefix+tail": cascade,
        "flashinfer": flashinfer,
    }


def kv_write(q: Tensor, k: Tensor, v: Tensor, slots: Tensor, table: Tensor, caches: list[Tensor]) -> dict[str, Build]:
    """Peers of `kv_write`: complex products, and index_put."""
    row = torch.arange(q.shape[0], device=q.device)[:, None]

    def chain() -> Tensor:
        angle = torch.view_as_complex(table[slots]).unsqueeze(2)

        def turn(x: Tensor) -> Tensor:
            pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
            return torch.view_as_real(pairs * angle).flatten(-2).to(x.dtype)

        caches[0][row, slots] = turn(k)
        caches[1][row, slots] = v
        return turn(q)

    return {"complex+index_put": lambda: chain}


def sample(cond: Tensor, uncond: Tensor, noise: Tensor, cfg_scale: float, top_k: int) -> dict[str, Build]:
    """Peers of `local_resample`; those with noise of their own give `Drawn`."""

    def filtered() -> Tensor:
        logits = uncond.float() + cfg_scale * (cond.float() - uncond.float())
        if not top_k:
            return logits
        return logits.masked_fill(logits < logits.topk(top_k, dim=1).values[:, -1:], -math.inf)

    def chain() -> Drawn:
        """Top-k, then top-p by sorting, then multinomial: eight passes over the logits."""
        logits = filtered()
        ordered, index = logits.sort(dim=1, descending=True)
        beyond = ordered.softmax(dim=1).cumsum(dim=1) > 1.0
        beyond = F.pad(beyond[:, :-1], (1, 0))
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(1, index, beyond), -math.inf)
        return Drawn(torch.multinomial(logits.softmax(dim=1), 1)[:, 0])

    def race() -> Drawn:
        """arg-max of the probabilities over exponential noise, which is a sample too."""
        share = filtered().softmax(dim=1)
        return Drawn(share.div_(torch.empty_like(share).exponential_(1)).argmax(dim=1))

    def compiled() -> Call:
        need_gpu(cond)
        function = torch.compile(lambda: (filtered() + noise).argmax(dim=1), dynamic=False)
        return lambda: function()

    def flashinfer() -> Call:
        """Rejection sampling from logits, since FlashInfer 0.2.3 with noise of its own; guidance is torch's."""
        sampling = need_flashinfer(cond).sampling

        def call() -> Drawn:
            logits = torch.lerp(uncond.float(), cond.float(), cfg_scale)
            if top_k:
                return Drawn(sampling.top_k_top_p_sampling_from_logits(logits, top_k, 1.0).long())
            return Drawn(sampling.sampling_from_logits(logits).long())

        return call

    return {
        "topk-sort-multinomial": lambda: chain,
        "softmax-exponential": lambda: race,
        "torch.compile": compiled,
        "flashinfer": flashinfer,
    }


def pooled(cond: Tensor, uncond: Tensor, tokens: Tensor, table: Tensor, cfg_scale: float) -> dict[str, Build]:
    """Peers of `pooled_mass`: softmax, gather, sum."""

    def chain() -> Tensor:
        share = (uncond.float() + cfg_scale * (cond.float() - uncond.float())).softmax(dim=1)
        return share.gather(1, table[tokens].long()).sum(dim=1)

    def compiled() -> Call:
        need_gpu(cond)
        function = torch.compile(chain, dynamic=False)
        return lambda: function()

    return {"softmax-gather": lambda: chain, "torch.compile": compiled}


def nearest(features: Tensor, codebook: Tensor) -> dict[str, Build]:
    """Peers of `nearest_code`, which store all distances."""

    def small() -> None:
        if 4 * len(features) * len(codebook) > MOST_SCORES:
            raise Unavailable("distances of more than 4 GiB")

    def distances() -> Call:
        small()
        a, b = features.float(), codebook.float()
        return lambda: torch.cdist(a, b).argmin(dim=1)

    def products() -> Call:
        small()
        return lambda: (features @ codebook.T).argmax(dim=1)

    return {"cdist-argmin": distances, "matmul-argmax": products}
