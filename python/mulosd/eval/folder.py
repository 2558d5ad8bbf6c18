"""The folder of an evaluation: taken up by the same call, refused to another, emptied only when asked."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from .journal import Journal

JOURNAL = "pictures.jsonl"
# All that an evaluation writes at the top of its folder.
OWN = (JOURNAL, "report.json", "report.html", "images")


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
