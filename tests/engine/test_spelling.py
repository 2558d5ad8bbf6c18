"""One spelling of decoders and sampling: texts, mappings and objects mean the same, and what ran is told as a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mulosd.engine.decoding import DECODERS, Decoder, DraftOnly, MuloSD, Serial, ZipAR, decoder_of, parse, spell
from mulosd.engine.engine import Engine
from mulosd.engine.sampling import SamplingParams

positive = st.integers(1, 10**6)
maybe = st.none() | positive
numbers = st.floats(0, allow_nan=False)
# What a file of weights may be called, on any system.
names = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=12)
UPSAMPLERS = st.sampled_from([None, "latent", "pixel", "srgan", "sr"])
DRAFTING = st.sampled_from([(None, None), (3, None), (None, 0), (None, 8)])


@st.composite
def mulo(draw: st.DrawFn) -> dict[str, Any]:
    window, guesses = draw(DRAFTING)
    cascade = draw(st.booleans())
    return {
        "scale": draw(maybe),
        "tau": draw(st.none() | numbers),
        "radius": draw(st.none() | st.integers(0, 99)),
        "pool": draw(maybe),
        "upsampler": draw(UPSAMPLERS),
        "rejection": draw(st.sampled_from(["local", "naive", "raster"])),
        "rows_per_cycle": None if cascade else draw(maybe),
        "window": draw(st.none() | st.integers(0, 99)),
        "draft_window": window,
        "draft_guesses": guesses,
        "verify_dtype": draw(st.sampled_from([None, "bfloat16", "float16"])),
        "cascade": cascade,
        "entropy_radius": draw(st.floats(allow_nan=False, allow_infinity=False)),
    }


@st.composite
def eagle(draw: st.DrawFn) -> dict[str, Any]:
    own = {"depth": draw(positive), "top_k": draw(positive), "total": draw(positive), "grid": draw(maybe)}
    if draw(st.booleans()):
        return {**own, "lantern_k": draw(positive), "delta": draw(st.floats(0, 0.999))}
    return {**own, "coupled": draw(st.booleans())}


EVERY: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "serial": st.fixed_dictionaries({"grid": maybe}),
    "draft-only": st.tuples(maybe, UPSAMPLERS, DRAFTING).map(
        lambda v: {"scale": v[0], "upsampler": v[1], "draft_window": v[2][0], "draft_guesses": v[2][1]}
    ),
    "mulo": mulo(),
    "product": st.tuples(maybe, UPSAMPLERS, DRAFTING, st.floats(1e-9, 1e9), st.sampled_from(["bfloat16", None])).map(
        lambda v: (
            {"scale": v[0], "upsampler": v[1], "draft_window": v[2][0], "draft_guesses": v[2][1]}
            | {"closeness": v[3], "verify_dtype": v[4]}
        )
    ),
    "zipar": st.fixed_dictionaries({"window": positive, "grid": maybe, "zero_kv": st.booleans()}),
    "jacobi": st.fixed_dictionaries({"window": positive, "coupled": st.booleans(), "grid": maybe}),
    "eagle": eagle(),
}


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_text_mapping_and_decoder_mean_the_same(name: str, data: st.DataObject) -> None:
    values = data.draw(EVERY[name])
    decoder = DECODERS[name].from_settings(values)
    assert parse(spell(decoder)) == decoder
    assert decoder_of({"name": name, **decoder.settings()}) == decoder
    assert decoder_of({"decoder": name, **{k: str(v) for k, v in values.items()}}) == decoder
    assert decoder_of(decoder) is decoder
    assert hash(parse(spell(decoder))) == hash(decoder)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=names)
def test_files_with_any_name_survive_a_text(tmp_path: Path, name: str) -> None:
    file = tmp_path / f"{name}.PTH".encode()[-200:].decode(errors="ignore").replace("PTH", "pth")
    file.touch()
    decoder = DraftOnly(upsampler=str(file))
    assert parse(spell(decoder)) == decoder
    assert "," not in spell(decoder), "commas part decoders on the command line"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (MuloSD, r"the class MuloSD: give a decoder, MuloSD\(\.\.\.\)"),
        (3, "a text, such as"),
        ("magic", "chosen from serial, draft-only, mulo"),
        ({"tau": 0.1}, "names its decoder once"),
        ({"name": "mulo", "decoder": "mulo"}, "names its decoder once"),
        ({"name": 5}, "chosen from serial"),
        ({"name": "mulo", "speed": 2}, "no setting 'speed=2'.* one of scale, tau"),
        ({"name": "mulo", "scale": 2.5}, "mulo:scale must be int or none, got 2.5"),
        ({"name": "mulo", "tau": True}, "mulo:tau must be float or none, got True"),
        ({"name": "zipar", "zero_kv": 1}, "zipar:zero_kv must be bool, got 1"),
        ({"name": "zipar", "window": None}, "zipar:window must be int, got None"),
    ],
)
def test_what_names_no_decoder_is_refused(engine: Engine, given: Any, message: str) -> None:
    for call in (engine.generate, engine.add_request):
        with pytest.raises(ValueError, match=message):
            call("apple", decoder=given)
    with pytest.raises(ValueError, match=message):
        engine.warmup(given)
    with pytest.raises(ValueError, match=message):
        next(engine.stream("apple", decoder=given))
    assert not engine.busy


def test_the_engine_takes_texts_and_mappings(engine: Engine) -> None:
    spellings: list[tuple[Decoder, Any, Any]] = [
        (Serial(4), "serial:grid=4", {"name": "serial", "grid": 4}),
        (ZipAR(2), "zipar:window=2", {"decoder": "zipar", "window": "2"}),
        (MuloSD(2, 0.03, 1, 2), "mulo:scale=2:tau=0.03:radius=1:pool=2",
         {"name": "mulo", "scale": 2, "tau": 0.03, "radius": 1, "pool": 2}),
    ]  # fmt: skip
    for decoder, *others in spellings:
        made = engine.generate("apple", decoder=decoder, seed=3)
        ran = parse(made.stats[0].spelling)
        assert ran == decoder.resolve(engine.family) and made.stats[0].decoder == decoder.name
        assert made.stats[0].to_dict()["spelling"] == spell(ran)
        for other in (*others, made.stats[0].spelling):
            assert torch.equal(engine.generate("apple", decoder=other, seed=3).tokens, made.tokens)
        *_, final = engine.stream("apple", decoder=others[0], seed=3)
        assert final.tokens is not None and torch.equal(final.tokens, made.tokens[0])


def test_sampling_is_changed_by_a_text_or_a_mapping(engine: Engine) -> None:
    usual = SamplingParams(cfg_scale=2.0, top_p=0.9)
    wanted = SamplingParams(cfg_scale=3.0, top_p=0.9, top_k=7)
    assert usual.changed("cfg_scale=3:top_k=7") == usual.changed({"cfg_scale": 3, "top_k": 7}) == wanted
    assert usual.changed(None) == usual and usual.changed(SamplingParams()) == SamplingParams()
    assert usual.changed("cfg_in_model_dtype=true:cfg_interval=-1").cfg_in_model_dtype
    greedy = engine.generate("apple", decoder="serial:grid=4", sampling="temperature=0").tokens
    assert torch.equal(greedy, engine.generate("apple", decoder="serial:grid=4", sampling={"temperature": 0}).tokens)
    for wrong, message in (
        ("heat=1", "no parameter 'heat'; it has cfg_scale, temperature"),
        ("top_k=many", "top_k must be int, got 'many'"),
        ({"top_k": 1.5}, "top_k must be int, got 1.5"),
        ({"top_p": 0}, "top_p must be in"),
        (0.5, "sampling must be SamplingParams, a text"),
        (SamplingParams, "sampling must be SamplingParams, a text"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.generate("apple", sampling=wrong, decoder="serial")  # type: ignore[arg-type]
