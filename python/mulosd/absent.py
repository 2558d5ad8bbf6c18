"""What other image generators have and this one does not, in words that the command line and the pipeline share."""

from __future__ import annotations

NO_NEGATIVE_PROMPT = "there are no negative prompts here: say what to draw"
NO_STEPS = "there are no diffusion steps here; `mulosd decoders` lists what trades time for quality"
SQUARE = "images are square"
