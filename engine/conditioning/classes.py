"""Class conditions: a prompt is the number or the name of a class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import Condition, Conditioner


class ClassConditioner(Conditioner):
    """Class ids from prompts such as "88" or, where the family has names, "macaw".

    Args:
        n_classes: how many; the id behind the last one is "no class".
        names: of each class, several separated by ", "; empty when the family has none.
    """

    kind: ClassVar[str] = "classes"
    example = "0"

    def __init__(self, n_classes: int, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.n_classes, self.names = n_classes, list(names)
        if self.names and len(self.names) != n_classes:
            raise ValueError(f"{n_classes} classes need as many names, got {len(self.names)}")
        self._ids: dict[str, int] = {}
        # Whole names first, then first names: a synonym of one class does not take the name of another.
        written = [[name, *name.split(",")] for name in self.names]
        for rank in range(max(map(len, written), default=0)):
            for i, synonyms in enumerate(written):
                if rank < len(synonyms):
                    self._ids.setdefault(synonyms[rank].strip().lower(), i)

    def id(self, prompt: str) -> int:
        """Class id of a prompt; ValueError says what there is."""
        text = prompt.strip().lower()
        if text.isdecimal() and int(text) < self.n_classes:
            return int(text)
        bare = re.sub(r"^(?:an?|the)\s+", "", text)
        for written in (text, bare):
            if written in self._ids:
                return self._ids[written]
        asked = f"this family draws classes, and {prompt!r} is none: give a number from 0 to {self.n_classes - 1}"
        if not self.names:
            raise ValueError(f"{asked}; `mulosd convert --class-names FILE` gives the classes names")
        near = get_close_matches(bare, self._ids, n=3)
        raise ValueError(f"{asked}, or a name" + (f", such as {', '.join(near)}" if near else ""))

    def name(self, prompt: str) -> str:
        """What to call the class of a prompt: its first name, or its number where the family has no names."""
        found = self.id(prompt)
        return self.names[found].split(",")[0] if self.names else str(found)

    def check(self, prompt: str) -> str | None:
        self.id(prompt)
        return None

    def condition(self, prompts: list[str], seeds: Sequence[int] | None = None) -> Condition:
        return Condition(torch.tensor([self.id(p) for p in prompts], device=self.device).view(-1, 1, 1))

    def null(self, batch: int) -> Tensor:
        return torch.full((batch, 1, 1), self.n_classes, dtype=torch.int64, device=self.device)

    def to_dict(self) -> dict[str, Any]:
        return {"n_classes": self.n_classes, "names": self.names}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ClassConditioner:
        return cls(values["n_classes"], values["names"])
