"""What a long measurement has done so far, on disk, so that an interrupted one goes on where it stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

JOURNAL = "pictures.jsonl"
# All that an evaluation writes at the top of its folder.
OWN = (JOURNAL, "report.json", "report.html", "images")


class Journal:
    """Records by key in a file of JSON lines. Each is on disk once `add` returns; a line cut short is dropped.

    Args:
        path: the file; None keeps nothing.
        about: plain values that tell one measurement from another. They are the first line.

    Raises:
        ValueError: the file is of another measurement (the message says in what they differ), or is no journal.
    """

    def __init__(self, path: Path | None, about: dict[str, Any]) -> None:
        self.path = path
        self.records: dict[tuple[int, ...], dict[str, Any]] = {}
        # As JSON has it: tuples become lists.
        head = json.loads(json.dumps(about))
        if path is not None and path.exists() and path.stat().st_size:
            self._read(path, head)
        elif path is not None:
            self._write(head)

    def _read(self, path: Path, head: dict[str, Any]) -> None:
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        try:
            found, *lines = [json.loads(line) for line in whole.splitlines()] or [None]
        except ValueError:
            found, lines = None, []
        if not isinstance(found, dict):
            raise ValueError(f"{path} is not a file of runs; name another")
        differs = [key for key in {**head, **found} if found.get(key) != head.get(key)]
        if differs:
            raise ValueError(
                f"{path} holds runs of another measurement, which differs in {', '.join(differs)}: "
                f"call it again as it was, or name another file"
            )
        if len(whole) < len(text):
            with path.open("r+b") as file:
                file.truncate(len(whole))
        self.records = {tuple(line["key"]): line["record"] for line in lines}

    def add(self, key: tuple[int, ...], record: dict[str, Any]) -> None:
        """Keep a record of plain values."""
        self.records[key] = record
        if self.path is not None:
            self._write({"key": key, "record": record})

    def _write(self, line: dict[str, Any]) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, separators=(",", ":")) + "\n")


def open_folder(folder: Path, about: dict[str, Any], overwrite: bool = False) -> Journal:
    """The journal of an evaluation's folder, which is made if it is missing.

    Args:
        folder: new, empty, or of an evaluation.
        about: plain values that tell one evaluation from another.
        overwrite: drop what an evaluation left there; other files are never touched.

    Raises:
        ValueError: the folder cannot be made, or it holds something else or another evaluation.
    """
    journal = folder / JOURNAL
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--report {folder} is a file; name a folder")
    if not folder.absolute().parent.is_dir():
        parent = folder.absolute().parent
        raise ValueError(f"--report {folder}: there is no folder {parent}; create it first (mkdir -p '{parent}')")
    if folder.is_dir() and any(folder.iterdir()) and not journal.is_file():
        raise ValueError(f"--report {folder} holds files that are no evaluation; name a new folder")
    if overwrite and journal.is_file():
        # The journal last: without it, a folder half emptied would be taken for someone else's.
        for name in reversed(OWN):
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    folder.mkdir(exist_ok=True)
    try:
        return Journal(journal, about)
    except ValueError as error:
        raise ValueError(f"{error}; --overwrite starts anew") from error
