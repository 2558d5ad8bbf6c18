"""How a family turns prompts into the condition of its models; one file a way."""

from .base import Condition, Conditioner, check_condition
from .captions import CaptionConditioner
from .classes import ClassConditioner
from .dialect import DialectConditioner
from .emu3 import Emu3Conditioner
from .glm_image import GlmImageConditioner
from .janus import JanusConditioner
from .limit import ObjectLimit
from .phrases import PhraseConditioner

CONDITIONERS: dict[str, type[Conditioner]] = {
    c.kind: c
    for c in (
        PhraseConditioner,
        ClassConditioner,
        CaptionConditioner,
        DialectConditioner,
        JanusConditioner,
        Emu3Conditioner,
        GlmImageConditioner,
    )
}

__all__ = [
    "CONDITIONERS",
    "CaptionConditioner",
    "ClassConditioner",
    "Condition",
    "Conditioner",
    "DialectConditioner",
    "Emu3Conditioner",
    "GlmImageConditioner",
    "JanusConditioner",
    "ObjectLimit",
    "PhraseConditioner",
    "check_condition",
]
