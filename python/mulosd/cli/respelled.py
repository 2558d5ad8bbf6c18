"""Options that commands once had, or that other programs have: how the same is written here, or why it is missing."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from ..absent import NO_NEGATIVE_PROMPT, NO_STEPS, SQUARE

# Settings of decoders whose option had the setting's name, and those that had another.
DECODER = {
    f"--{name.replace('_', '-')}": name
    for name in (
        *("scale", "tau", "radius", "pool", "upsampler", "rejection", "rows_per_cycle", "window", "draft_window"),
        *("draft_guesses", "cascade", "entropy_radius", "verify_dtype"),
        *("depth", "total", "coupled", "lantern_k", "delta"),
    )
} | {"--sr-weights": "upsampler", "--tree-top-k": "top_k"}
SAMPLING = {
    f"--{name.replace('_', '-')}": name for name in ("cfg_scale", "temperature", "top_k", "top_p", "cfg_interval")
}
# What other image generators have and `generate` does not, and what comes closest.
NONE = {
    "--negative-prompt": f"{NO_NEGATIVE_PROMPT} (more closely: --sampling cfg_scale=…)",
    "--lora": "LoRA weights are not supported: `mulosd train` makes a family of your own images",
    **dict.fromkeys(
        ("--image", "--init-image", "--input-image", "--strength", "--mask"),
        "images are made from words alone, there is no image-to-image",
    ),
    "--steps": NO_STEPS,
    **dict.fromkeys(("--width", "--height"), f"{SQUARE}: --size PX, one of the sizes that `mulosd info` lists"),
}
FLAGS = ("--cascade", "--coupled")
# What was dropped, and what was found; docs/ablations.md has the figures.
GONE = {
    "refine": "redrawn drafts made no better images and took longer",
    "entropy_tau": "it was never measured to help; entropy_radius stays",
    "refresh": "no effect of stale keys and values on images was seen",
    "rounds": "it was never measured to help",
}


def check_gone(text: str) -> None:
    """ValueError when the text of a decoder states a setting that was dropped."""
    for setting in text.split(":")[1:]:
        if (name := setting.partition("=")[0]) in GONE:
            raise ValueError(f"{setting} of {text!r} is gone: {GONE[name]} (docs/ablations.md); leave it out")


def respell(args: list[str], own: set[str]) -> str | None:
    """What to tell about former options among `args`, of a command that has the options `own` now; None: none there."""
    base, found = "", []
    words = iter(args)
    for word in words:
        if word == "--":
            break
        option, equals, value = word.partition("=")
        if not option.startswith("-"):
            continue
        if option == "--decoder":
            base = value or next(words, "")
        elif "--num-images" in own and (usual := option.replace("_", "-")) in NONE:
            return f"{option}: {NONE[usual]}"
        elif option not in own and (option in DECODER | SAMPLING or option[2:].replace("-", "_") in GONE):
            value = "true" if option in FLAGS else value if equals else next(words, "VALUE")
            found.append((option, value))
    told = []
    for option, value in found:
        if (why := GONE.get(option[2:].replace("-", "_"))) is not None:
            told.append(f"{option} {value} is gone: {why} (docs/ablations.md)")
    settings = {DECODER[option]: value for option, value in found if option in DECODER}
    sampling = {SAMPLING[option]: value for option, value in found if option in SAMPLING}
    if settings:
        told.append(moved(found, DECODER, "decoder", text_of(settings, decoder_with(settings, base))))
    if sampling:
        told.append(moved(found, SAMPLING, "sampling", text_of(sampling)))
    return "; ".join(told) or None


def moved(found: list[tuple[str, str]], where: dict[str, str], option: str, text: str) -> str:
    given = [name if name in FLAGS else f"{name} {value}" for name, value in found if name in where]
    return f"{' '.join(given)} {'is' if len(given) == 1 else 'are'} now part of the {option}: --{option} {text}"


def text_of(settings: dict[str, str], *first: str) -> str:
    from ..engine.arguments import spelled

    return ":".join([*first, *(f"{key}={spelled(value)}" for key, value in settings.items())])


def decoder_with(settings: dict[str, str], base: str) -> str:
    """`base` where that decoder has these settings, otherwise one that has them."""
    from ..engine.decoding import DECODERS

    for name in (base, "mulo", "eagle", *DECODERS):
        kind = DECODERS.get(name.partition(":")[0])
        if kind is not None and set(settings) <= set(kind.text_settings()):
            return name
    return base or "mulo"


class Respelled(TyperCommand):
    """A command that tells how an option that it does not have is written here."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        message = respell(args, {name for parameter in self.params for name in parameter.opts})
        if message is not None:
            raise ValueError(message)
        return super().parse_args(ctx, args)
