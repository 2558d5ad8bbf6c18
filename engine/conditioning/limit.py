"""How many objects an image of a family holds at most, and how many a prompt asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..models.text import Vocabulary


@dataclass(frozen=True)
class ObjectLimit:
    """The most objects that a family has learned to put into an image.

    Args:
        most: objects an image.
        objects: phrases of the vocabulary that name one.
        numbers: words of the vocabulary, and how many of the object behind them they ask for.

    Raises:
        ValueError: numbers below 1.
    """

    most: int
    objects: tuple[str, ...]
    numbers: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.most < 1 or any(number < 1 for number in self.numbers.values()):
            raise ValueError(f"numbers of objects must be at least 1, got {self.most} and {dict(self.numbers)}")

    def asked(self, vocabulary: Vocabulary, prompt: str) -> int:
        """Objects that a prompt asks for. Synonyms and plurals count as what they mean, unknown words as nothing."""
        named = {vocabulary.phrases.get(name) for name in self.objects}
        numbers = {vocabulary.phrases.get(word): number for word, number in self.numbers.items()}
        found, times = 0, 1
        for phrase in vocabulary.parse(prompt)[0]:
            if phrase in numbers:
                times = numbers[phrase]
            elif phrase in named:
                found, times = found + times, 1
        return found

    def warning(self, vocabulary: Vocabulary, prompt: str) -> str | None:
        """What is to be said of a prompt that asks for too many, or None."""
        asked = self.asked(vocabulary, prompt)
        if asked <= self.most:
            return None
        objects = "object" if self.most == 1 else "objects"
        return f"draws images of at most {self.most} {objects}, and {prompt!r} asks for {asked}: expect another number"

    def to_dict(self) -> dict[str, Any]:
        return {"most": self.most, "objects": list(self.objects), "numbers": dict(self.numbers)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ObjectLimit:
        return cls(int(values["most"]), tuple(values["objects"]), dict(values.get("numbers", {})))
