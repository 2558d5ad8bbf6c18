"""Philox4x32-10 random numbers with one fixed counter layout, the same for every backend.

    key     = (seed & 0xffffffff, seed >> 32)             the 64-bit seed of the request
    counter = (vocab_index // 4, position, purpose, 0)    four 32-bit words
    output  = word `vocab_index % 4` of the four that the block cipher returns

A number depends on (seed, position, purpose, vocabulary index) alone: neither the batch that a request travels in, nor
the order in which positions are visited, nor the backend can change it.

Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011).
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


class Purpose(IntEnum):
    """What a draw is for; draws of different purposes are independent.

    Resampling draws with TARGET on purpose: a position that is resampled after a rejection gets the token that serial
    decoding of the target would have drawn there under the same context. LEVEL is the same for the grids in between
    that a cascade goes through.
    """

    TARGET = 0
    DRAFT = 1
    LEVEL = 2


def philox4x32(key: Tensor, counter: Tensor) -> Tensor:
    """Ten rounds of Philox on 32-bit words held in int64.

    Args:
        key: int64 [2, ...], words in [0, 2**32), broadcastable to `counter[:2]`.
        counter: int64 [4, ...], words in [0, 2**32).

    Returns:
        int64 [4, ...], words in [0, 2**32).
    """
    dims = [2] + [1] * (counter.dim() - 1)
    multiplier = torch.tensor(MULTIPLIERS, device=counter.device).view(dims)
    weyl = torch.tensor(WEYL, device=counter.device).view(dims)
    # `even` holds words (0, 2) and `odd` words (1, 3), so that one operation serves both halves of a round.
    even, odd = counter[0::2], counter[1::2]
    for step in range(ROUNDS):
        product = even * multiplier  # wraps modulo 2**64: the low 64 bits are those of the unsigned product
        high = (product >> 32).bitwise_and_(MASK)  # the shift is arithmetic: the mask removes the copied sign
        even = torch.stack((high[1], high[0])).bitwise_xor_(odd).bitwise_xor_((key + step * weyl) & MASK)
        product &= MASK
        odd = product.flip(0)
    return torch.stack((even[0], odd[0], even[1], odd[1]))


def uniform(seed: Tensor, position: Tensor, vocab: int, purpose: int) -> Tensor:
    """Uniform numbers in the open interval (0, 1), one per row and vocabulary entry.

    The 23 top bits `b` of a word give `(b + 0.5) * 2**-23`: exact in float32 and never 0 or 1 (with 24 bits the largest
    value would round to 1).

    Args:
        seed: int64 [R], the seed of each row's request (all 64 bits count).
        position: int64 [R], raster positions in [0, 2**32).
        vocab: V, the number of columns.
        purpose: a `Purpose`, or any number in [0, 2**32).

    Returns:
        float32 [R, V].

    Raises:
        ValueError: shapes or dtypes differ from the above, or `vocab` < 1, or `purpose` is out of range.
    """
    if seed.dtype != torch.int64 or position.dtype != torch.int64 or seed.dim() != 1 or seed.shape != position.shape:
        raise ValueError(
            f"seed and position must be int64 [R] of one length, got {seed.dtype} {list(seed.shape)} "
            f"and {position.dtype} {list(position.shape)}"
        )
    if vocab < 1:
        raise ValueError(f"vocab must be at least 1, got {vocab}")
    if not 0 <= purpose <= MASK:
        raise ValueError(f"purpose must be in [0, 2**32), got {purpose}")
    rows, blocks = seed.shape[0], (vocab + 3) // 4
    key = torch.stack((seed & MASK, (seed >> 32) & MASK))[:, :, None]
    counter = torch.zeros(4, rows, blocks, dtype=torch.int64, device=seed.device)
    counter[0] = torch.arange(blocks, device=seed.device)
    counter[1] = (position & MASK)[:, None]
    counter[2] = int(purpose)
    bits = philox4x32(key, counter) >> 9
    values = bits.float().add_(0.5).mul_(2.0**-23)
    return values.permute(1, 2, 0).reshape(rows, 4 * blocks)[:, :vocab].contiguous()


def gumbel(seed: Tensor, position: Tensor, vocab: int, purpose: int) -> Tensor:
    """Standard Gumbel noise `-log(-log(u))` of `uniform`; finite, between about -2.8 and 16.7.

    Arguments, shape and errors are those of `uniform`. The uniform numbers agree bit for bit between backends; the
    logarithms may differ by some units in the last place.
    """
    return uniform(seed, position, vocab, purpose).log_().neg_().log_().neg_()
