"""Where a checkpoint comes from: a file, a folder that holds it, or a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..engine.paths import expanded

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(?:/[\w./-]+)?")


def locate(source: str | Path, names: Sequence[str], what: str) -> Path:
    """The local file of a checkpoint.

    Args:
        source: a file, a folder, or OWNER/REPOSITORY with or without /FILE.
        names: file names that are looked for in a folder or repository, in this order.
        what: the option, for messages.

    Raises:
        ValueError: there is no such file, folder or repository, or it cannot be reached.
        ImportError: a repository was named, and huggingface_hub is not installed.
    """
    path = expanded(source)
    if path.is_file():
        return path
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                return path / name
        raise ValueError(f"{what} {path} is a folder without {' or '.join(names)}; name the file")
    text = str(source)
    if path.is_absolute() or text.startswith((".", "~")) or not REPOSITORY.fullmatch(text) or path.parent.is_dir():
        raise ValueError(f"{what} {path}: there is no such file")
    return fetch(text, names, what)


def fetch(repository: str, names: Sequence[str], what: str) -> Path:
    """A file of a repository, from the hub or its local cache."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise ImportError(
            f"{what} {repository}: there is no such file, and to fetch a repository of that name takes "
            f"huggingface_hub: pip install 'mulosd[hub]'"
        ) from error
    owner, name, *inside = repository.split("/", 2)
    for file in inside or names:
        try:
            return Path(hf_hub_download(f"{owner}/{name}", file))
        except (LocalEntryNotFoundError, OSError) as error:
            # Offline, or no such repository: another name would fail alike.
            if not isinstance(error, HfHubHTTPError | EntryNotFoundError) or isinstance(error, LocalEntryNotFoundError):
                raise ValueError(
                    f"{what} {repository}: there is no such file here, and {owner}/{name} cannot be reached; "
                    f"fetch {file} where there is a network, and give its path"
                ) from error
    raise ValueError(f"{what} {repository}: the repository has no {' or '.join(inside or names)}; name the file")
