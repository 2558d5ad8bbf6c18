"""Triton backend of `expand_islands`: one program an image, which meets its own writes again through global memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import jit
from ..jit import unusable
from .call import Call
from .reference import Expansion

__all__ = ["decline", "run", "unusable"]

MAX_SIDE = 128
CHUNK = 2048  # cells that the program holds at a time


@triton.jit
def _least_of_neighbours(root, row, col, inside, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """The least of what a cell and its eight neighbours hold; outside cells hold HEIGHT * WIDTH."""
    least = tl.load(root + row * WIDTH + col, mask=inside, other=HEIGHT * WIDTH)
    for n in tl.static_range(9):
        if n != 4:
            r = row + (n // 3 - 1)
            c = col + (n % 3 - 1)
            there = inside & (r >= 0) & (r < HEIGHT) & (c >= 0) & (c < WIDTH)
            held = tl.load(root + r * WIDTH + c, mask=there, other=HEIGHT * WIDTH)
            least = tl.minimum(least, held)
    return least


@triton.jit(do_not_specialize=["radius", "window"])
def expand_islands_kernel(
    rejected,
    expanded,
    labels,
    order,
    latest,  # None: one cell a step in raster order
    radius,
    window,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    ISLANDS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    CHUNK: tl.constexpr,
):
    CELLS: tl.constexpr = HEIGHT * WIDTH
    image = tl.program_id(0).to(tl.int64)
    rejected += image * CELLS
    expanded += image * CELLS
    labels += image * CELLS
    order += image * CELLS

    # Dilation along rows goes to `labels`, which is free until the end; then along columns.
    first = CELLS
    for start in range(0, CELLS, CHUNK):
        i = start + tl.arange(0, CHUNK)
        col = i % WIDTH
        near = tl.zeros((CHUNK,), tl.int32)
        for shift in range(-radius, radius + 1):
            there = (i < CELLS) & (col + shift >= 0) & (col + shift < WIDTH)
            near |= tl.load(rejected + i + shift, mask=there, other=0).to(tl.int32)
        tl.store(labels + i, near, mask=i < CELLS)
        own = tl.load(rejected + i, mask=i < CELLS, other=0).to(tl.int32)
        first = tl.minimum(first, tl.min(tl.where(own != 0, i, CELLS)))
    tl.debug_barrier()
    total = 0
    for start in range(0, CELLS, CHUNK):
        i = start + tl.arange(0, CHUNK)
        near = tl.zeros((CHUNK,), tl.int32)
        for shift in range(-radius, radius + 1):
            there = (i < CELLS) & (i + shift * WIDTH >= 0) & (i + shift * WIDTH < CELLS)
            near |= tl.load(labels + i + shift * WIDTH, mask=there, other=0)
        near = tl.where(i >= first, near, 0)
        tl.store(expanded + i, near.to(tl.int8), mask=i < CELLS)
        # `order` holds the roots until it is known.
        tl.store(order + i, tl.where(near != 0, i, CELLS), mask=i < CELLS)
    tl.debug_barrier()

    # Every cell takes the least root around it, then that root's own. Roots only ever fall, and only to cells of the
    # same island, so it does not matter which threads are ahead; at rest each cell holds its island's first cell.
    changed = first < CELLS
    while changed:
        moved = 0
        for start in range(0, CELLS, CHUNK):
            i = start + tl.arange(0, CHUNK)
            root = tl.load(order + i, mask=i < CELLS, other=CELLS)
            inside = root < CELLS
            least = _least_of_neighbours(order, i // WIDTH, i % WIDTH, inside, HEIGHT, WIDTH)
            hop = tl.load(order + least, mask=inside, other=CELLS)
            tl.debug_barrier()
            tl.store(order + i, hop, mask=inside)
            moved = tl.maximum(moved, tl.max((hop != root).to(tl.int32)))
            tl.debug_barrier()
        changed = moved != 0

    # First cells are numbered in raster order; then every cell reads the number at its root.
    for start in range(0, CELLS, CHUNK):
        i = start + tl.arange(0, CHUNK)
        is_first = (tl.load(order + i, mask=i < CELLS, other=CELLS) == i).to(tl.int32)
        number = total + tl.cumsum(is_first)
        tl.store(labels + i, number, mask=(i < CELLS) & (is_first != 0))
        total += tl.sum(is_first)
    tl.debug_barrier()
    rank = 0
    for start in range(0, CELLS, CHUNK):
        i = start + tl.arange(0, CHUNK)
        root = tl.load(order + i, mask=i < CELLS, other=CELLS)
        label = tl.load(labels + root, mask=root < CELLS, other=0)
        inside = (root < CELLS).to(tl.int32)
        # Only cells that are no first ones are written: those keep what others still read.
        tl.store(labels + i, label, mask=(i < CELLS) & (root != i))
        serial = tl.where(inside != 0, rank + tl.cumsum(inside) - 1, -1)
        tl.debug_barrier()
        if latest is None:
            tl.store(order + i, serial, mask=i < CELLS)
        else:
            tl.store(order + i, tl.full((CHUNK,), -1, tl.int32), mask=i < CELLS)
        rank += tl.sum(inside)

    if latest is not None:
        # latest[island][column]: the step of the island's lowest cell so far in that column, the largest there.
        latest += image * (ISLANDS * WIDTH)
        for start in range(0, total * WIDTH, CHUNK):
            i = start + tl.arange(0, CHUNK)
            tl.store(latest + i, tl.full((CHUNK,), -1, tl.int32), mask=i < total * WIDTH)
        tl.debug_barrier()
        col = tl.arange(0, BLOCK_W)
        for row in range(first // WIDTH, HEIGHT):
            label = tl.load(labels + row * WIDTH + col, mask=col < WIDTH, other=0)
            if tl.max(label) > 0:
                # Cells down, columns across: what a cell waits for in earlier rows.
                seen = (label[:, None] > 0) & (col[None, :] < WIDTH) & (col[None, :] - col[:, None] < window)
                above = tl.load(latest + (label[:, None] - 1) * WIDTH + col[None, :], mask=seen, other=-1)
                head = tl.max(above, axis=1) + 1 - col
                # Then along its run: cells without a gap between them have passed as many gaps.
                gaps = tl.cumsum((label == 0).to(tl.int32))
                run = (gaps[:, None] == gaps[None, :]) & (label[None, :] > 0) & (col[None, :] <= col[:, None])
                step = col + tl.max(tl.where(run, head[None, :], -CELLS), axis=1)
                tl.debug_barrier()
                tl.store(order + row * WIDTH + col, step, mask=label > 0)
                tl.store(latest + (label - 1) * WIDTH + col, step, mask=label > 0)
                tl.debug_barrier()


def decline(call: Call) -> str | None:
    """Why the kernel cannot serve these arguments, or None."""
    rejected = call.rejected
    if max(rejected.shape[1:]) > MAX_SIDE:
        return f"a grid of {rejected.shape[1]} x {rejected.shape[2]} exceeds {MAX_SIDE} x {MAX_SIDE}"
    return jit.decline_tensors(rejected)


def run(call: Call) -> Expansion:
    """Expansion, labels and order; one launch."""
    rejected, radius, window = call
    rejected = rejected.contiguous()
    batch, height, width = rejected.shape
    expanded = torch.empty_like(rejected)
    labels, order = (torch.empty(rejected.shape, dtype=torch.int32, device=rejected.device) for _ in range(2))
    # Islands touch nowhere, so they are at most as many as blocks of 2 x 2 cells.
    islands = ((height + 1) // 2) * ((width + 1) // 2)
    latest = None
    if window is not None:
        latest = torch.empty(batch, islands, width, dtype=torch.int32, device=rejected.device)
    if batch:
        with jit.on_device(rejected):
            expand_islands_kernel[(batch,)](
                rejected.view(torch.int8),
                expanded.view(torch.int8),
                labels,
                order,
                latest,
                min(radius, max(height, width) - 1),
                0 if window is None else min(window, width),
                HEIGHT=height,
                WIDTH=width,
                ISLANDS=islands,
                BLOCK_W=triton.next_power_of_2(width),
                CHUNK=min(CHUNK, triton.next_power_of_2(height * width)),
                num_warps=8,
                num_stages=1,  # loads must not be moved ahead of barriers
            )
    return Expansion(expanded, labels, order)
