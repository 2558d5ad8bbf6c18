"""Counts the files and lines that one request passes through, from `Engine.generate` to the saved image."""

from __future__ import annotations

import argparse
import inspect
import io
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from mulosd import Engine
from mulosd.engine.decoding import parse
from mulosd.engine.family import Family
from mulosd.engine.random_family import random_family

PACKAGE = "mulosd"
DECODERS = ("serial", "mulo:scale=2:tau=0.05:radius=1:pool=3")
EXAMPLE = """example:
  python tools/files_of_a_request.py --list
  python tools/files_of_a_request.py --family emoji --decoder zipar:window=8 --decoder mulo"""


@dataclass
class Passed:
    """What a call passed through.

    Attributes:
        files: module name -> its file.
        run: module name -> numbers of the lines that ran.
    """

    files: dict[str, Path] = field(default_factory=dict)
    run: dict[str, set[int]] = field(default_factory=dict)

    def lines(self, module: str) -> int:
        """How long a file is."""
        return len(self.files[module].read_text(encoding="utf-8").splitlines())

    def totals(self) -> tuple[int, int, int]:
        """Files, their lines, and how many of those ran."""
        return len(self.files), sum(map(self.lines, self.files)), sum(map(len, self.run.values()))


def trace(call: Callable[[], object], package: str = PACKAGE) -> Passed:
    """Call it, and note which functions of the package run in this thread.

    A method that was generated, such as that of a dataclass, counts for the file of its class, though it has no lines
    there. Bodies of modules and classes do not count: importing is no part of a request.
    """
    found = Passed()

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        module = frame.f_globals.get("__name__") or ""
        file = frame.f_globals.get("__file__")
        if module.partition(".")[0] != package or file is None or not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            return None
        found.files.setdefault(module, Path(file))
        lines = found.run.setdefault(module, set())
        if frame.f_code.co_filename.startswith("<"):
            return None

        def step(frame: FrameType, event: str, argument: Any) -> Any:
            if event == "line":
                lines.add(frame.f_lineno)
            return step

        return step

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        call()
    finally:
        sys.settrace(before)
    return found


def trace_request(
    text: str, family: str | None = None, prompt: str = "red apple", linear: str | None = "torch"
) -> Passed:
    """What one request passes through.

    Args:
        text: of the decoder.
        family: name or folder; None is a small one with random weights.
        prompt: what to generate.
        linear: see `Engine`: what the engine would choose by measuring differs by machine.
    """

    def request() -> Callable[[], None]:
        engine = Engine(random_family() if family is None else Family.load(family), linear=linear)
        decoder = parse(text)

        def run() -> None:
            engine.generate(prompt, decoder=decoder).images[0].save(io.BytesIO(), "PNG")

        return run

    # Once untraced, so that everything is imported; then an engine that has kept nothing.
    request()()
    return trace(request())


def table(found: dict[str, Passed]) -> Iterable[str]:
    """A line a decoder."""
    width = max(map(len, found))
    yield f"{'decoder':{width}}  files   lines  of them run"
    for text, passed in found.items():
        files, lines, run = passed.totals()
        yield f"{text:{width}}  {files:5}  {lines:6,}  {run:11,}"


def listing(passed: Passed) -> Iterable[str]:
    """A line a file."""
    width = max(map(len, passed.files))
    for module in sorted(passed.files):
        yield f"  {module:{width}}  {passed.lines(module):6,}  {len(passed.run[module]):11,}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--decoder", action="append", help=f"repeatable; default {' and '.join(DECODERS)}")
    parser.add_argument("--family", help="name or folder; default a small one with random weights")
    parser.add_argument("--prompt", default="red apple")
    parser.add_argument("--linear", default="torch", help="how a CPU multiplies, see docs/cpu.md; default torch")
    parser.add_argument("--list", action="store_true", help="also list the files")
    options = parser.parse_args(arguments)
    decoders = options.decoder or DECODERS
    found = {text: trace_request(text, options.family, options.prompt, options.linear) for text in decoders}
    print("\n".join(table(found)))
    if options.list:
        for text, passed in found.items():
            print("\n".join(["", text, *listing(passed)]))


if __name__ == "__main__":
    main()
