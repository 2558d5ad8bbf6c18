"""A batch of requests on one grid: KV cache by slot, the CFG pair as one unit, one forward primitive.

Slot = condition length + raster position, always: a rejected token is overwritten in place, nothing is moved. Rows
0..B-1 of the cache hold the conditional branch and, with guidance, rows B..2B-1 the unconditional one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.kv_write import kv_write
from ..kernels.verify_attention import verify_attention
from .models.transformer import Transformer
from .sampling import Logits
from .stats import Recorder


class Session:
    """Feeds tokens of B requests at chosen positions and returns logits.

    Args:
        model: the AR transformer.
        grid: side length in tokens.
        cond: condition features [B, cond_len, cond_dim].
        uncond: unconditional features of the same shape, or None without guidance.
        recorder: where forwards are counted.
        role: the role under which `feed` counts unless told otherwise.
    """

    def __init__(
        self, model: Transformer, grid: int, cond: Tensor, uncond: Tensor | None, recorder: Recorder, role: str
    ) -> None:
        c = model.config
        self.model, self.grid, self.recorder, self.role = model, grid, recorder, role
        self.batch, self.guided = cond.shape[0], uncond is not None
        features = cond if uncond is None else torch.cat([cond, uncond])
        self.cond_len, self.size = c.cond_len, grid * grid
        weight = model.output.weight
        shape = (len(features), c.cond_len + self.size, c.n_heads, c.head_dim)
        # Zeros, not empty memory: a slot that is masked out is still read.
        self.k = [torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in model.blocks]
        self.v = [torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in model.blocks]
        self._rotary = model.rotary(grid)
        self._position = model.position_embedding(grid)
        self._everywhere = model.embed_global(features)
        self._slots = torch.arange(shape[1], device=weight.device)
        x = self._layers(model.embed_prefix(features, grid), None, 0)
        self.first = self._logits(x[:, -1:])
        recorder.forward("prefill", c.cond_len)

    def _layers(self, x: Tensor, slots: Tensor | None, start: int | None) -> Tensor:
        """Run all blocks on x [rows, Q, dim] at `slots` [rows, Q], or at the consecutive slots from `start`."""
        rows, n = x.shape[:2]
        if slots is None:
            if start is None:
                raise ValueError("pass slots or start")
            slots, kv_len = self._slots[start : start + n].expand(rows, n), start + n
        else:
            kv_len = int(slots.max()) + 1
        for layer, block in enumerate(self.model.blocks):
            q, k, v = block.qkv(x)
            q = kv_write(q, k, v, slots, self._rotary, self.k[layer], self.v[layer], start=start)
            o = verify_attention(q, self.k[layer], self.v[layer], slots, kv_len=kv_len, start=start)
            x = block.finish(x, o)
        return x

    def _logits(self, hidden: Tensor) -> Logits:
        out = self.model.logits(hidden)
        return Logits(out[: self.batch], out[self.batch :] if self.guided else None)

    def feed(
        self, tokens: Tensor, positions: Tensor | int, *, role: str | None = None, logits: str = "all"
    ) -> Logits | None:
        """Feed tokens at raster positions in one forward; their keys and values overwrite what stood there.

        A token attends to every slot at or before its own, so all earlier positions must hold tokens.

        Args:
            tokens: int64 [B, Q].
            positions: int64 [B, Q], or the first of Q consecutive positions, the same for the batch.
            role: counted under this role.
            logits: "all" for the logits that follow each token [B, Q, V], "last" for those after the last one
                [B, 1, V], "none" to write the cache only.
        """
        n = tokens.shape[1]
        start = None if isinstance(positions, Tensor) else positions + self.cond_len
        where = positions if isinstance(positions, Tensor) else self._slots[positions : positions + n]
        x = self.model.tok_embeddings(tokens) + self._position[where]
        if isinstance(positions, Tensor):
            slots = positions + self.cond_len
            if self.guided:
                slots = torch.cat([slots, slots])
        else:
            slots = None
        if self.guided:
            x = torch.cat([x, x])
        if self._everywhere is not None:
            x = x + self._everywhere
        x = self._layers(x, slots, start)
        self.recorder.forward(role or self.role, n)
        if logits == "none":
            return None
        return self._logits(x[:, -1:] if logits == "last" else x)
