"""FID on MS-COCO: an image of one caption of each image, against the real images.

Captions: captions_val2014.json of MS-COCO (https://cocodataset.org). There is no official script; papers draw 30,000
captions of the 2014 validation set (issue 22 of https://github.com/deepseek-ai/Janus is one that says so). The scorer
is clean-fid (https://github.com/GaParmar/clean-fid) or torch-fidelity (https://github.com/toshas/torch-fidelity).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from PIL.Image import Image

from ...engine.paths import expanded
from ...files.texts import read_json
from .base import Item, Protocol, Score, installed, save

SOURCE = (
    "captions_val2014.json from http://images.cocodataset.org/annotations/annotations_trainval2014.zip "
    "(https://cocodataset.org, 2014 Train/Val annotations)"
)
USUAL = 30_000
SEED = 0
STATISTICS = "stats:"


class CocoFID(Protocol):
    """IMAGE_ID.png, the first caption of each image; images in random order, the same for everyone.

    Args:
        items: what is drawn.
        official: how many are usual.
        reference: a folder of real images, "stats:NAME" of clean-fid, or "builtin" for none.
    """

    name: ClassVar[str] = "coco-fid"

    def __init__(self, items: Sequence[Item], official: int, reference: str = "builtin") -> None:
        super().__init__(items, official)
        self.reference = reference

    @classmethod
    def open(cls, prompts: Path, reference: str, limit: int | None) -> CocoFID:
        prompts = expanded(prompts)
        if not prompts.is_file():
            raise ValueError(f"--prompts {prompts}: there is no such file; get {SOURCE}")
        try:
            annotations = read_json(prompts)["annotations"]
            captions = sorted((int(a["image_id"]), int(a["id"]), str(a["caption"])) for a in annotations)
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"--prompts {prompts} holds no captions of MS-COCO; get {SOURCE}") from None
        if not reference.startswith(STATISTICS) and reference != "builtin" and not expanded(reference).is_dir():
            raise ValueError(
                f"--reference {reference}: there is no such folder; give the real images (val2014, from "
                f"http://images.cocodataset.org/zips/val2014.zip) or stats:NAME of clean-fid's make_custom_stats"
            )
        chosen: dict[int, str] = {}
        for image, _, caption in captions:
            # Line breaks within a caption are no part of it.
            chosen.setdefault(image, " ".join(caption.split()))
        items = [Item(str(image), caption) for image, caption in chosen.items() if caption]
        if not items:
            raise ValueError(f"--prompts {prompts} holds no captions; get {SOURCE}")
        random.Random(SEED).shuffle(items)
        known = reference == "builtin" or reference.startswith(STATISTICS)
        return cls(items[: USUAL if limit is None else limit], USUAL, reference if known else str(expanded(reference)))

    def files(self, item: Item) -> list[Path]:
        return [Path(f"{item.key}.png")]

    def write(self, folder: Path, item: Item, images: Sequence[Image]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        [file], [image] = self.files(item), images
        save(folder / file, image)

    def score(self, folder: Path, device: str) -> Score:
        if self.reference == "builtin":
            return Score(note="FID needs real images: call this again with --reference val2014/ or stats:NAME")
        clean_fid = installed("cleanfid.fid")
        if clean_fid is not None:
            return Score({"FID": self._clean_fid(clean_fid, folder, device)}, "clean-fid, mode clean")
        torch_fidelity = installed("torch_fidelity")
        if torch_fidelity is None or self.reference.startswith(STATISTICS):
            return Score(note="clean-fid cannot be imported: pip install clean-fid, then call this again")
        found = torch_fidelity.calculate_metrics(
            input1=str(folder), input2=self.reference, fid=True, cuda=device.startswith("cuda")
        )
        return Score({"FID": float(found["frechet_inception_distance"])}, "torch-fidelity, inception-v3-compat")

    def _clean_fid(self, scorer: Any, folder: Path, device: str) -> float:
        import torch

        how = {"mode": "clean", "num_workers": 0, "device": torch.device(device), "use_dataparallel": False}
        if self.reference.startswith(STATISTICS):
            name = self.reference.removeprefix(STATISTICS)
            return float(scorer.compute_fid(str(folder), dataset_name=name, dataset_split="custom", **how))
        return float(scorer.compute_fid(str(folder), self.reference, **how))
