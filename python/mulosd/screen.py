"""What may be shown on a terminal, and consoles that show nothing else."""

from __future__ import annotations

import unicodedata
from typing import Any

from rich.console import Console
from rich.text import Text

# Signs that turn the order of others around, so that a text reads as another; marks of direction within scripts stay.
REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
LINES = frozenset("\u2028\u2029")


def printable(text: str, keep: str = "\n\t") -> str:
    r"""A text in which control characters, terminal escapes and lone surrogates are written out, such as "\x1b".

    Names of families and files, prompts and captions come from anywhere; an escape in them could move the cursor, set
    the title, write to the clipboard, or hide what follows.

    Args:
        text: any.
        keep: control characters that stay; "" makes one line of it.
    """
    if text.isprintable() and not (REORDERING & set(text)):
        return text
    return "".join(shown(letter) if letter not in keep else letter for letter in text)


def shown(letter: str) -> str:
    if unicodedata.category(letter) in ("Cc", "Cs") or letter in REORDERING or letter in LINES:
        return letter.encode("unicode_escape", "surrogatepass").decode()
    return letter


class Screen(Console):
    """A console whose texts are `printable`, whatever they are made of; its own styles and colours stay."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)
