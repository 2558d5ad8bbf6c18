"""Visibility masks inside a draft block, as booleans and as packed 32-bit words.

Row i of a mask says which of the Q draft tokens query i may see. Packed, key j is bit `j % 32` (least significant
first) of word `j // 32`, so a 32-key tile of a row is one register. Masks are built where their inputs lie, and nothing
here waits for a device.
"""

from __future__ import annotations

import torch
from torch import Tensor


def raster_causal(length: int, device: torch.device | str | None = None) -> Tensor:
    """Mask bool [Q, Q] in which each token sees itself and all tokens before it."""
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def tree(parents: Tensor) -> Tensor:
    """Mask bool [..., Q, Q] in which each node of a draft tree sees itself and its ancestors; on the parents' device.

    Args:
        parents: int [..., Q], the index of each node's parent, which comes earlier, or -1 for a root.

    Raises:
        ValueError: a parent does not come before its child. Only parents on the CPU are checked, for a device would
            have to be waited for: there such a node is a root.
    """
    length = parents.shape[-1]
    node = torch.arange(length, device=parents.device)
    wrong = (parents < -1) | (parents >= node)
    if parents.device.type == "cpu" and wrong.any():
        where = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(f"parent of node {where[-1]} must be -1 or an earlier node, got {int(parents[where])}")
    # After n rounds a row holds the ancestors up to 2**n - 1 generations back, and `hop` leads 2**n back. One more
    # row, which is empty and leads to itself, stands above the roots.
    hop = parents.new_full((*parents.shape[:-1], length + 1), length, dtype=torch.int64)
    hop[..., :length] = torch.where(wrong | (parents < 0), length, parents)
    mask = torch.eye(length + 1, length, dtype=torch.bool, device=parents.device).expand(*hop.shape, length)
    for _ in range(max(length - 1, 0).bit_length()):
        mask = mask | mask.gather(-2, hop[..., None].expand(mask.shape))
        hop = hop.gather(-1, hop)
    return mask[..., :length, :].contiguous()


def islands(labels: Tensor) -> Tensor:
    """Mask bool [..., Q, Q] in which each token sees itself and earlier tokens of its own island or of none.

    Args:
        labels: int [..., Q], island numbers in block order, 0 for tokens that belong to no island and are seen by all.
    """
    same = labels[..., :, None] == labels[..., None, :]
    return (same | (labels == 0)[..., None, :]).tril()


def pack(mask: Tensor) -> Tensor:
    """Pack a mask bool [..., Q] into little-endian words int32 [..., ceil(Q / 32)]; spare bits are 0.

    Raises:
        ValueError: the mask is not boolean.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, got {mask.dtype}")
    spare = -mask.shape[-1] % 32
    bits = torch.nn.functional.pad(mask, (0, spare)).unflatten(-1, (-1, 32)).long()
    words = (bits << torch.arange(32, device=mask.device)).sum(dim=-1)
    # Bit 31 is the sign of an int32.
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def unpack(words: Tensor, length: int) -> Tensor:
    """Inverse of `pack`: mask bool [..., length] from words int32 [..., ceil(length / 32)].

    Raises:
        ValueError: the words are not int32 or are not as many as `length` needs.
    """
    if words.dtype != torch.int32 or words.shape[-1] != (length + 31) // 32:
        raise ValueError(
            f"words must be int32 [..., {(length + 31) // 32}] for length {length}, got {words.dtype} "
            f"{list(words.shape)}"
        )
    bits = (words[..., None] >> torch.arange(32, dtype=torch.int32, device=words.device)) & 1
    return bits.flatten(-2)[..., :length].bool()
