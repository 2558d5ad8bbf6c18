"""How a family turns prompts into the condition of its models; one file a way."""

from .base import Condition, Conditioner, check_condition
from .captions import CaptionConditioner
from .classes import ClassConditioner
from .dialect import DialectConditioner
from .phrases import PhraseConditioner

CONDITIONERS: dict[str, type[Conditioner]] = {
    c.kind: c for c in (PhraseConditioner, ClassConditioner, CaptionConditioner, DialectConditioner)
}

__all__ = [
    "CONDITIONERS",
    "CaptionConditioner",
    "ClassConditioner",
    "Condition",
    "Conditioner",
    "DialectConditioner",
    "PhraseConditioner",
    "check_condition",
]
