"""How one call is cut into programs: rows of a tile, and how many programs share the keys of one query.

Everything here is a pure function of shapes known on the host, so planning never waits for the device.
"""

from __future__ import annotations

MAX_SPLITS = 32
# Rows of a key head from which on the matrix instructions of warpgroups, which Triton emits on sm_90 and sm_100, pay:
# a tile of theirs holds twice the rows, so that keys come half as often from L2.
WIDE_ROWS = 128

# The most that partial results, written and read, may be of the bytes of keys and values.
PARTIAL_SHARE = 0.25

# The costs below are in units of one tile of keys. What a program does before and after its loop:
_PROLOGUE = 2.0
# The second kernel, which merges partial results:
_MERGE_LAUNCH = 4.0


def cdiv(a: int, b: int) -> int:
    """`a / b` rounded up."""
    return -(-a // b)


def preferred(rows: int, half: bool, capability: int) -> tuple[str, ...]:
    """The order in which backends are asked to serve `rows` = Q * H / Hkv rows a key head.

    Args:
        rows: queries of one key head.
        half: float16 or bfloat16.
        capability: of the device, 80, 90, ...
    """
    wide = rows >= WIDE_ROWS and half and capability // 10 in (9, 10)
    return ("triton", "cuda", "cpu", "torch") if wide else ("cuda", "triton", "cpu", "torch")


def tile_rows(rows: int, largest: int = 128) -> int:
    """Rows of a tile for `rows` = Q * H / Hkv rows a key head: the least of 16, 32, 64, 128 that holds all.

    Where none does, the largest stays: the keys are then read once for as many rows as possible.
    """
    size = 16
    while size < min(rows, largest):
        size *= 2
    return size


def choose_splits(
    *,
    heads: int,
    rows: int,
    keys: int,
    tile_rows: int,
    tile_keys: int,
    processors: int,
    resident: int = 2,
) -> int:
    """Number of programs that share the keys of one tile of queries, by a model of occupancy.

    With `t` tiles of queries, `n` tiles of keys and `s` splits the time is modelled as

        ceil(t * s / (processors * resident)) * (ceil(n / s) + prologue)  +  merge(s),

    waves of programs times the length of one, and for s > 1 the merge: one launch, and float32 partial results that
    are written and read, `2 * tile_rows / tile_keys` tiles of 16-bit keys and values for every split, which all
    programs of a wave move side by side. The least s of the least cost wins. Partial results never exceed PARTIAL_SHARE
    of the bytes of keys and values, `8 * s * rows <= PARTIAL_SHARE * 4 * keys` for one number of each.

    Args:
        heads: B * Hkv, independent pairs of a request and a key head.
        rows: Q * H / Hkv, queries of one key head.
        keys: committed slots plus draft keys.
        tile_rows, tile_keys: the tile of one program.
        processors: streaming multiprocessors of the device.
        resident: programs that fit on one of them.
    """
    tiles, length = heads * cdiv(rows, tile_rows), cdiv(keys, tile_keys)
    most = max(1, min(MAX_SPLITS, length, int(PARTIAL_SHARE * keys / (2 * rows))))

    def cost(splits: int) -> float:
        waves = cdiv(tiles * splits, processors * resident)
        merge = 0.0
        if splits > 1:
            merge = _MERGE_LAUNCH + 2.0 * min(rows, tile_rows) / tile_keys * splits * tiles / (processors * resident)
        return waves * (cdiv(length, splits) + _PROLOGUE) + merge

    return min(range(1, most + 1), key=lambda splits: (cost(splits), splits))


def split_length(keys: int, splits: int, tile_keys: int) -> int:
    """Keys of one split, a multiple of `tile_keys`, so that all splits but the last hold whole tiles."""
    return cdiv(cdiv(keys, tile_keys), splits) * tile_keys
