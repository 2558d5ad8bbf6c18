"""What a long measurement has done so far, on disk, so that an interrupted one goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


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
