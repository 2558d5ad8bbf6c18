"""The decoders and families that run on the made-up device."""

from __future__ import annotations

from mulosd.engine.decoding import Decoder, DraftOnly, Eagle, Jacobi, MuloSD, Serial, ZipAR, parse
from mulosd.engine.family import Family
from mulosd.engine.random_family import random_family
from mulosd.engine.sampling import SamplingParams

SAMPLING = SamplingParams(cfg_scale=3.0, top_k=10, top_p=0.9)
REPAIR = "tau=0.2:radius=1:pool=3:window=2"
DECODERS: dict[str, Decoder] = {
    "serial": Serial(),
    "zipar": ZipAR(window=3),
    "jacobi": Jacobi(window=16),
    "jacobi, independent": Jacobi(window=16, coupled=False),
    "mulo, raster": MuloSD(2, tau=0.05, radius=1, pool=3),
    "mulo, windows": parse(f"mulo:scale=2:{REPAIR}:draft_window=2"),
    "mulo, cascade of scale 4": parse(f"mulo:scale=4:{REPAIR}:cascade=true"),
    "mulo, leaning": parse(f"mulo:scale=2:{REPAIR}:closeness=0.1"),
    "mulo, rows by rows": MuloSD(2, tau=0.05, radius=1, pool=3, rows_per_cycle=4),
    "draft-only": DraftOnly(2),
    "eagle": Eagle(depth=3, top_k=3, total=8, grid=4),
}


def text_family() -> Family:
    """Phrases, a drafter of features, grids of side 2, 4 and 8."""
    return random_family(drafter=True)


def class_family() -> Family:
    """Two classes."""
    return random_family(classes=["cat", "dog"], drafter=True)


PROMPTS = {"text": ["an apple", "red pear"], "classes": ["cat", "dog"]}
