"""Which decoders a family can be drawn with, and which one draws where a call names none."""

from __future__ import annotations

from ..family import Family
from ..family_config import FILE
from .base import Decoder
from .spec import DECODERS, DecoderLike, decoder_of, parse

MULO, SERIAL = "mulo", "serial"


def default_decoder(family: Family) -> str:
    """The text of the decoder that draws where none is named.

    It is the one that family.json names; otherwise `mulo` where the family is calibrated for its own scale and
    up-sampler, and `serial`, with which every family can be drawn, where it is not.
    """
    if family.config.decoder is not None:
        return family.config.decoder
    return MULO if is_calibrated(family) else SERIAL


def is_calibrated(family: Family) -> bool:
    """Whether `mulo` can be left without settings."""
    return family.scale is not None and family.calibration(family.scale, family.upsampler) is not None


def remark(family: Family) -> str | None:
    """One line for whoever names no decoder and expects `mulo`; None where it is the default, or family.json names
    another one."""
    if family.config.decoder is not None or is_calibrated(family):
        return None
    able = [name for name, reason in applying(family).items() if not reason]
    own = family.path is not None and (family.path / FILE).is_file()
    more = ", or run `mulosd calibrate`" if MULO in able and own else ""
    return (
        f"family {family.name!r} is drawn with serial, for it is not calibrated for mulo: name another decoder "
        f"({', '.join(able)}){more}"
    )


def decoder_for(family: Family, given: DecoderLike) -> Decoder:
    """The decoder that an argument means for a family, its open settings left open; None is the default.

    Raises:
        ValueError: as `decoder_of`.
    """
    return decoder_of(default_decoder(family) if given is None else given)


def applying(family: Family) -> dict[str, str]:
    """Every decoder by name, with the reason where the family cannot be drawn with it, or an empty text."""
    found = {}
    for name in DECODERS:
        # What a calibration would say decides nothing here.
        text = "mulo:tau=0:radius=0:pool=1" if name == MULO else name
        try:
            parse(text).resolve(family).check_layout(family)
        except ValueError as error:
            found[name] = str(error)
        else:
            found[name] = ""
    return found
