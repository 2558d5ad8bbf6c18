"""Odd arguments to every public call: each is served or refused in words, and the engine draws on as before.

    python tools/fuzz.py --count 10000

After each call a good one must give its reference tokens. A call may raise ValueError or TypeError, nothing else; one
that takes longer than the time limit is a fault too. Prints each fault with the seed that makes it again; exits with 1
for any.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typer.testing import CliRunner

from mulosd import AsyncEngine, Engine, SamplingParams, SchedulerConfig
from mulosd.cli import app
from mulosd.engine.arguments import whole
from mulosd.engine.conditioning import Condition
from mulosd.engine.decoding.spec import DECODERS, decoder_class, decoder_of, parse
from mulosd.engine.random_family import random_family

ALLOWED = (ValueError, TypeError)
LIMIT = 20  # seconds a call may take, on a busy machine too
MULO = "mulo:scale=2:tau=0.05:radius=1:pool=3"
GOOD: dict[str, Any] = {"decoder": "draft-only:scale=2", "sampling": "cfg_scale=2"}


class Loud:
    """An object that nothing is prepared for: even showing it fails."""

    def __repr__(self) -> str:
        raise RuntimeError("repr of an odd object")


class Index:
    """An object that claims to be a number."""

    def __index__(self) -> int:
        return 3


def values(rng: random.Random) -> Any:
    """One odd value."""
    choices: list[Callable[[], Any]] = [
        lambda: None,
        lambda: rng.choice([True, False, np.True_]),
        lambda: rng.choice([0, -1, 1, 2, 3, 7, 2**31, 2**62, 2**63 - 1, 2**63, -(2**63), 10**30]),
        lambda: rng.choice([0.0, -0.0, 0.5, 1.5, -2.5, math.nan, math.inf, -math.inf, 1e308, 5e-324, 1e-40]),
        lambda: rng.choice(
            ["", " ", "a", "nan", "inf", "1", "-1", "1e9", "none", "true", "\x00", "\ud800", "猫", "🐱"]
        ),
        lambda: rng.choice(["red apple", "serial", "mulo:tau=", "zipar:window=nan", ":", "a:b=c", "x" * 5000, "%zz"]),
        lambda: rng.choice([b"", b"red apple", bytearray(b"x"), memoryview(b"abc")]),
        lambda: rng.choice(
            [[], [1], [None], ["red apple", 3], [[]], (), (1, 2), {}, {"a": 1}, {"name": "mulo"}, {1: 2}]
        ),
        lambda: rng.choice([set(), {1}, frozenset({"a"}), range(3), range(0), iter([1]), (x for x in "ab")]),
        lambda: rng.choice([np.int64(3), np.uint8(2), np.float32(0.5), np.float64(math.nan), np.str_("red apple")]),
        lambda: rng.choice(
            [np.array(3), np.array([1, 2]), np.array([]), np.zeros((2, 2)), np.array(["a"]), np.array(None)]
        ),
        lambda: torch.tensor(rng.choice([4, -1, 0.5, math.nan])),
        lambda: rng.choice(
            [torch.tensor([1, 2]), torch.zeros(0), torch.zeros(1, 2, 2, dtype=torch.int64), torch.tensor(True)]
        ),
        lambda: torch.zeros(2, 4, 16, device=rng.choice(["cpu", "meta"])),
        lambda: rng.choice([Decimal("1.5"), Decimal("NaN"), Fraction(1, 3), 1j, complex(math.nan, 1)]),
        lambda: rng.choice([object(), object, int, len, Ellipsis, NotImplemented, Exception("x"), sys, Loud, Index()]),
        lambda: rng.choice(
            [Path("/nowhere"), Path(), Path("/dev/null"), torch.float64, torch.device("cpu"), torch.int8]
        ),
        lambda: {
            "name": rng.choice([*DECODERS, "x", None, 3]),
            rng.choice(["tau", "window", "scale", "radius"]): values(rng),
        },
        lambda: {rng.choice([f.name for f in fields(SamplingParams)]): values(rng)},
        lambda: decoder_class(rng.choice(list(DECODERS))),
    ]
    return rng.choice(choices)()


def mixed(rng: random.Random, good: dict[str, Any], share: float = 0.4) -> dict[str, Any]:
    """Good arguments, some of them made odd, some left out."""
    odd = rng.choice(list(good)) if rng.random() < 0.7 else None
    return {
        key: values(rng) if key == odd or (odd is not None and rng.random() < share / len(good)) else value
        for key, value in good.items()
        if key == odd or rng.random() < 0.9
    }


class Calls:
    """The public calls, on one engine of a tiny family of random weights."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.engine = Engine(random_family(drafter=True))
        self.family = self.engine.family
        self.reference = {s: self.engine.generate("red apple", seed=s, **GOOD).tokens.clone() for s in (0, 5)}
        self.all = [
            self.generate, self.add, self.stream, self.nll, self.to_images, self.control, self.engines, self.limits,
            self.sampling, self.decoders, self.text, self.asynchronous, self.warmup, self.number, self.command,
        ]  # fmt: skip
        self.folder = Path(tempfile.mkdtemp(prefix="mulosd_fuzz_"))
        self.family.save(self.folder / "family")

    def intact(self) -> str | None:
        """What is wrong with the engine, if anything: requests or rows that stayed, or other tokens than before."""
        self.engine.clear()
        while self.engine.busy:
            self.engine.step()
        if self.engine.scheduler.running or self.engine.scheduler.waiting or self.engine.scheduler.bytes:
            return "requests stayed under way"
        if any(any(cache.used) for cache in self.engine.caches.values()):
            return "rows of the cache stayed lent"
        for seed, tokens in self.reference.items():
            if not torch.equal(self.engine.generate("red apple", seed=seed, **GOOD).tokens, tokens):
                return f"seed {seed} gives other tokens than before"
        return None

    def asked(self, rng: random.Random) -> dict[str, Any]:
        text = rng.choice(["serial", "zipar:window=2", "jacobi:window=8", MULO, MULO, "draft-only:scale=2", "eagle"])
        return {"prompt": "red apple", "decoder": text, "sampling": "cfg_scale=1.5", "seed": rng.randrange(9)}

    def generate(self, rng: random.Random) -> None:
        given = {**self.asked(rng), "num_images": 2, "batch_size": 2, "progress": None, "features": None}
        given["prompts"] = given.pop("prompt")
        given = mixed(rng, given)
        given.setdefault("prompts", values(rng))
        self.engine.generate(**given)

    def add(self, rng: random.Random) -> None:
        given = mixed(rng, {**self.asked(rng), "previews": True, "features": None})
        given.setdefault("prompt", values(rng))
        number = self.engine.add_request(**given)
        for _ in range(rng.randrange(30)):
            for update in self.engine.step():
                if update.error is not None:
                    raise update.error
        if rng.random() < 0.5:
            self.engine.abort(number)

    def stream(self, rng: random.Random) -> None:
        given = mixed(rng, self.asked(rng))
        given.setdefault("prompt", values(rng))
        for i, _ in enumerate(self.engine.stream(**given)):
            if i == rng.randrange(4):
                break

    def nll(self, rng: random.Random) -> None:
        tokens = torch.randint(24, (1, 4, 4))
        self.engine.nll(**mixed(rng, {"prompts": ["red apple"], "tokens": tokens}, 1.0))

    def to_images(self, rng: random.Random) -> None:
        self.engine.to_images(rng.choice([values(rng), torch.randint(99, (1, 4, 4)), torch.zeros(1, 4, 5).long()]))

    def control(self, rng: random.Random) -> None:
        if rng.random() < 0.5:
            self.engine.abort(values(rng))
        else:
            self.engine.check_prompts(values(rng))

    def engines(self, rng: random.Random) -> None:
        if rng.random() < 0.5:
            Engine(random_family(), **mixed(rng, {"device": "cpu", "dtype": "float32", "config": None}))
        else:
            Engine.from_pretrained(**mixed(rng, {"family": "nothing", "device": "cpu", "dtype": "float32"}))

    def limits(self, rng: random.Random) -> None:
        given = {"max_running": 2, "kv_budget": 10**7, "max_tokens": 64, "static": None, "collapse_prefix": False}
        engine = Engine(self.family, config=SchedulerConfig(**mixed(rng, given)))
        engine.generate("red apple", **GOOD)

    def sampling(self, rng: random.Random) -> None:
        given = {f.name: f.default for f in fields(SamplingParams)}
        params = SamplingParams(**mixed(rng, given))
        self.engine.generate("red apple", decoder="draft-only:scale=2", sampling=params)

    def decoders(self, rng: random.Random) -> None:
        kind = decoder_class(rng.choice(list(DECODERS)))
        names = [f.name for f in fields(kind)]  # type: ignore[arg-type]
        chosen = rng.sample(names, min(len(names), rng.randrange(1, 3)))
        self.engine.generate(
            "red apple", decoder=kind(**{name: values(rng) for name in chosen}), sampling="cfg_scale=2"
        )

    def text(self, rng: random.Random) -> None:
        name = rng.choice(list(DECODERS))
        settings = list(decoder_class(name).text_settings()) or ["x"]
        value = rng.choice(
            ["", "none", "nan", "-1", "0", "1", "1e9", "1e400", "0x3", "²", "٣", "true", "[]", "1_0", " 2 ", "cfg=3"]
        )
        decoder = parse(f"{name}:{rng.choice(settings)}={value}") if rng.random() < 0.7 else decoder_of(values(rng))
        self.engine.generate("red apple", decoder=decoder)

    def asynchronous(self, rng: random.Random) -> None:
        async def run() -> None:
            served = AsyncEngine(self.engine, **mixed(rng, {"max_waiting": 4}))
            try:
                given = mixed(rng, self.asked(rng))
                given.setdefault("prompt", values(rng))
                await served.generate(**given)
            finally:
                await served.close()

        asyncio.run(run())

    def warmup(self, rng: random.Random) -> None:
        self.engine.warmup(values(rng))

    def command(self, rng: random.Random) -> None:
        family, out = str(self.folder / "family"), self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        plain = {
            "--family": family, "--decoder": "draft-only:scale=2", "--sampling": "cfg_scale=2", "--seed": "3",
            "--num-images": "1", "--size": "16", "--output": str(out / "a.png"), "--stats": str(out / "s.json"),
            "--sheet": str(out / "sheet.png"), "--prompts": str(out / "p.txt"), "--device": "cpu", "--dtype": "float32",
        }  # fmt: skip
        (out / "p.txt").write_bytes(
            rng.choice([b"red apple\n", b"", b"\xff\xfe", b"prompt,seed\nred apple,x\n", b"{}\n"])
        )
        odd = [
            "", " ", "-1", "0", "nan", "1e9", "9" * 30, "none", "\t", "-", "--", "..", "/", "/dev/null", "/dev/full",
            str(out), str(out / "no" / "a.png"), str(out / "b.bmp"), str(out / ("x" * 300)), "a\nb", "\x1b[31m", "猫",
            "serial", "mulo:tau=x", "eagle", "cuda:7", "meta", "float64", "bfloat16", "random", "=", "a=b:c", family,
        ]  # fmt: skip
        words = rng.choice([["red apple"], ["red apple", "blue pear"], ["-"], [""], ["--x"], ["a"], []])
        for name in rng.sample(list(plain), rng.randrange(1, 4)):
            words += [name, rng.choice([*odd, plain[name], plain[name]])]
        if "--family" not in words:
            words += ["--family", family]
        if "--output" not in words:
            words += ["--output", str(out / "a.png")]
        words.insert(0, rng.choice(["generate"] * 8 + ["info", "decoders", "evaluate", "calibrate", "nothing"]))
        result = CliRunner().invoke(app, words, input=rng.choice(["", "red apple\n", "\x00", "pear\nred"]))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        left = [path.name for path in out.rglob("*") if path.suffix in (".part", ".tmp")]
        if result.exit_code not in (0, 1, 2) or left:
            raise RuntimeError(f"{words} ended with {result.exit_code} and left {left}")
        if result.exit_code:
            raise ValueError(result.output)

    def number(self, rng: random.Random) -> None:
        whole("count", values(rng), 0, 9)
        Condition(values(rng))


@contextmanager
def deadline(seconds: int) -> Iterator[None]:
    """TimeoutError inside the block after so many seconds."""

    def late(*_: object) -> None:
        raise TimeoutError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def one(calls: Calls, seed: int) -> tuple[str, str | None]:
    """What became of the call of a seed ("served" or the name of what it raised), and its fault, if it is one."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    call = rng.choice(calls.all)
    kind, fault = "served", None
    try:
        with deadline(LIMIT):
            call(rng)
    except ALLOWED as error:
        kind = type(error).__name__
        if not str(error).strip():
            fault = f"{call.__name__}: {kind} without a word"
    except Exception as error:
        kind = type(error).__name__
        fault = f"{call.__name__}: {kind}: {str(error).splitlines()[0] if str(error) else ''}"
    broken = calls.intact()
    if broken is not None:
        fault = f"{call.__name__}: {kind}, and then {broken}"
    return kind, fault


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="calls to make")
    parser.add_argument("--first", type=int, default=0, help="seed of the first one")
    given = parser.parse_args()
    calls, kinds, faults, begun = Calls(), Counter[str](), 0, time.perf_counter()
    for seed in range(given.first, given.first + given.count):
        kind, fault = one(calls, seed)
        kinds[kind] += 1
        if fault is not None:
            faults += 1
            print(f"seed {seed}: {fault}")
        if (seed + 1) % 1000 == 0:
            print(f"{seed + 1}: {dict(kinds)}, {faults} faults, {time.perf_counter() - begun:.0f} s", flush=True)
    print(f"{given.count} calls: {dict(kinds)}; {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
