"""Lines of code by folder, of the working tree and, beside it, of another commit."""

from __future__ import annotations

import argparse
import io
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = (".py", ".cu", ".cuh", ".cpp", ".h", ".j2")
# Below these a folder is counted by itself; others as a whole.
OPENED = ("engine", "kernels", "python/mulosd", "python/mulosd/measure", "tests")
EXAMPLE = """example:
  python tools/lines.py
  python tools/lines.py --before main engine python/mulosd"""


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True).stdout


def now() -> Iterator[tuple[str, bytes]]:
    """Path and content of every file of the working tree that git does not ignore."""
    for name in sorted(set(git("ls-files", "-co", "--exclude-standard", "-z").decode().split("\0"))):
        path = ROOT / name
        if name.endswith(SUFFIXES) and path.is_file():
            yield name, path.read_bytes()


def at(commit: str) -> Iterator[tuple[str, bytes]]:
    """The same of a commit."""
    with tarfile.open(fileobj=io.BytesIO(git("archive", commit))) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(SUFFIXES) else None
            if file is not None:
                yield member.name, file.read()


def folder_of(path: str) -> str:
    """The folder that a file counts for."""
    parents = [p.as_posix() for p in PurePosixPath(path).parents][:-1]
    return next((p for p in parents if p in OPENED or PurePosixPath(p).parent.as_posix() in (*OPENED, ".")), ".")


def count(files: Iterable[tuple[str, bytes]]) -> Counter[str]:
    """Lines by folder."""
    found: Counter[str] = Counter()
    for path, content in files:
        found[folder_of(path)] += len(content.splitlines())
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", help="only these and what is below; default all")
    parser.add_argument("--before", metavar="COMMIT", help="compare with it")
    options = parser.parse_args(arguments)
    counts = [count(now())]
    if options.before:
        counts.insert(0, count(at(options.before)))

    def within(folder: str, outer: str) -> bool:
        return folder == outer or folder.startswith(f"{outer}/")

    folders = sorted(set().union(*counts))
    chosen = [f for f in folders if not options.folders or any(within(f, outer) for outer in options.folders)]
    lines = [(folder, [c[folder] for c in counts]) for folder in chosen]
    for outer in options.folders or ["engine", "kernels", "python/mulosd", "tests"]:
        lines.append((f"{outer}, whole", [sum(n for f, n in c.items() if within(f, outer)) for c in counts]))
    lines.append(("together", [sum(c[f] for f in chosen) for c in counts]))
    width = max(len(name) for name, _ in lines)
    for name, numbers in lines:
        print(f"{name:{width}}", *(f"{n:8,}" for n in numbers))


if __name__ == "__main__":
    main()
