"""Whether regions that were drawn anew fit what stands around them: jumps of colour at their borders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..statistics import bootstrap

# Columns of `edge_sums`.
BORDER, BORDER_NEAR, BORDERS, BESIDE, BESIDE_NEAR, BESIDES = range(6)


def boundary_jumps(image: NDArray[np.uint8], grid: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Jumps of colour at the upright boundaries between the tokens of an image.

    Args:
        image: uint8 [S, S, 3].
        grid: tokens a side.

    Returns:
        [grid, grid - 1] each: the mean absolute difference of the two columns of pixels that meet at a boundary, and
        that of the pairs of columns next to it, which lie inside its two tokens. Both in 0..255.

    Raises:
        ValueError: the side is no multiple of the grid, or a token is narrower than 2 px.
    """
    size = image.shape[0]
    if image.shape != (size, size, 3) or size % grid or size < 2 * grid:
        raise ValueError(f"an image of {grid}x{grid} tokens must be [S, S, 3], S a multiple of the grid and at least "
                         f"2 px a token, got {list(image.shape)}")  # fmt: skip
    steps = np.abs(np.diff(image.astype(np.float64), axis=1)).mean(axis=2)
    rows = steps.reshape(grid, size // grid, size - 1).mean(axis=1)
    at = np.arange(1, grid) * (size // grid) - 1
    return rows[:, at], (rows[:, at - 1] + rows[:, at + 1]) / 2


def grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The marked tokens and all that touch them, corners included."""
    height, width = mask.shape
    padded = np.pad(mask, 1)
    shifts = [padded[i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return np.logical_or.reduce(shifts)


def edge_sums(image: NDArray[np.uint8], resampled: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Sums over the token boundaries of an image, [6].

    A boundary between a resampled and a kept token is a border. The other boundaries within the resampled regions and
    a token around them are what it is compared with: images differ too much from place to place to compare with all.
    For each kind: the sum of the jumps, that of the jumps next to them within the tokens, and their number.

    Args:
        image: uint8 [S, S, 3].
        resampled: bool [G, G].

    Raises:
        ValueError: see `boundary_jumps`.
    """
    sums = np.zeros(6)
    around = grown(resampled)
    for pixels, mask, area in ((image, resampled, around), (image.transpose(1, 0, 2), resampled.T, around.T)):
        jumps, within = boundary_jumps(pixels, len(mask))
        first, second = mask[:, :-1], mask[:, 1:]
        near_region = area[:, :-1] & area[:, 1:]
        for start, kind in ((BORDER, first != second), (BESIDE, (first == second) & near_region)):
            sums[start : start + 3] += jumps[kind].sum(), within[kind].sum(), kind.sum()
    return sums


def energy(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean jump at borders over mean jump beside them, from sums [..., 6]."""
    return (sums[..., BORDER] / sums[..., BORDERS]) / (sums[..., BESIDE] / sums[..., BESIDES])


def sharpness(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same, each jump first compared with those within its two tokens, so that detail that differs cancels."""
    return (sums[..., BORDER] / sums[..., BORDER_NEAR]) / (sums[..., BESIDE] / sums[..., BESIDE_NEAR])


def seam_energy(
    images: Sequence[NDArray[np.uint8]], resampled: NDArray[np.bool_], group: int = 1
) -> dict[str, Any] | None:
    """Seam energy of images: 1 where the borders of resampled regions are no rougher than the boundaries beside them.

    Args:
        images: uint8 [S, S, 3] each.
        resampled: bool [B, G, G].
        group: neighbours that are images of one prompt, the unit of the intervals.

    Returns:
        {"value", "ci95", "relative", "relative_ci95", "borders", "beside"}: `value` is `energy`, `relative` is
        `sharpness`, the last two count boundaries. None where no image has both kinds, or nothing jumps beside
        the borders.

    Raises:
        ValueError: see `boundary_jumps`.
    """
    sums = np.stack([edge_sums(image, mask) for image, mask in zip(images, resampled, strict=True)])
    by_prompt = sums.reshape(-1, group, 6).sum(axis=1)
    total = by_prompt.sum(axis=0)
    if not total[BORDERS] or not total[BESIDE] or not total[BORDER_NEAR] or not total[BESIDE_NEAR]:
        return None
    return {
        "value": float(energy(total)),
        "ci95": list(bootstrap(by_prompt, energy)),
        "relative": float(sharpness(total)),
        "relative_ci95": list(bootstrap(by_prompt, sharpness)),
        "borders": int(total[BORDERS]),
        "beside": int(total[BESIDES]),
    }
