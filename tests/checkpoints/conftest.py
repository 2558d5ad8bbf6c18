"""Small checkpoints on disk."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from released import tiny_ar, tiny_ta_tok, tiny_vq


@dataclass(frozen=True)
class Files:
    """Tiny checkpoints on disk: pairs of 16 and 32 px (8 and 16 tokens a side) of every kind."""

    folder: Path

    def __getitem__(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("released")
    for grid in (4, 8):
        size = argparse.Namespace(image_size=2 * grid)
        torch.save({"model": tiny_ar("class", grid, grid), "args": size}, folder / f"c2i_{grid}.pt")
        torch.save({"module": tiny_ar("caption", grid, grid + 1), "args": size}, folder / f"t2i_{grid}.pt")
        args = {"n_head": 2, "cls_token_num": 81, "max_seq_len": grid * grid}
        tar = {"name": "llama-abs-S", "args": args, "sd": tiny_ar("tar", grid, grid + 2)}
        torch.save({"model": tar}, folder / f"tar_{grid}.pth")
    torch.save({"model": tiny_vq()}, folder / "vq.pt")
    ta_args = {"bottleneck": {"name": "bottleneck", "args": {"regularizer": {"args": {"l2_normalized": True}}}}}
    torch.save({"model": {"args": ta_args, "sd": tiny_ta_tok()}}, folder / "ta_tok.pth")
    return Files(folder)
