"""`mulosd batch`: lists of prompts to folders of images that another call completes.

`Painter` draws, in this process or as an actor of Ray; `Folder` is the one that writes; `run` brings them together.
"""

from __future__ import annotations

from .folder import Folder
from .painter import Drawn, Painter, Painters, Prepared, Recipe
from .run import Counts, run

__all__ = ["Counts", "Drawn", "Folder", "Painter", "Painters", "Prepared", "Recipe", "run"]
