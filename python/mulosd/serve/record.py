"""One request as the server keeps it: its number, what became of it, and the line that the log gets."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections.abc import MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

logger = logging.getLogger("mulosd.serve")
KEY = "mulosd.record"
# A client may name its request, by a name that is safe in a header and in a log.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{7,63}")


@dataclass
class Record:
    """A request under way.

    Attributes:
        id: its number, the header `x-request-id`.
        begun: by the monotonic clock.
        outcome: of a request for images, one of `metrics.OUTCOMES`.
        facts: what the log's line says beside.
        cleanup: what is given back when the request ends, however it ends.
    """

    id: str
    begun: float = field(default_factory=time.monotonic)
    outcome: str = "refused"
    facts: dict[str, Any] = field(default_factory=dict)
    cleanup: ExitStack = field(default_factory=ExitStack)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun


def request_id(asked: str | None, taken: set[str]) -> str:
    """The number of a request: the one that its client asks for, if it may have it."""
    if asked is not None and NAME.fullmatch(asked) and asked not in taken:
        return asked
    return f"req_{secrets.token_hex(12)}"


def record_of(scope: MutableMapping[str, Any]) -> Record:
    """The record of an ASGI scope."""
    found = scope[KEY]
    if not isinstance(found, Record):
        raise RuntimeError("the application runs without its outermost layer, which makes a record of each request")
    return found


def line(record: Record, method: str, path: str, status: int, form: str) -> str:
    """The one line of a request, as text or as JSON; control characters of a path or a prompt are escaped."""
    values = {
        "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "id": record.id,
        "method": method,
        "path": path,
        "status": status,
        "seconds": round(record.seconds, 4),
        **record.facts,
    }
    if form == "json":
        return json.dumps(values)
    shown = [f"{key}={plain(value)}" for key, value in values.items() if key not in ("time", "id", "method", "path")]
    return f"{values['time']} {record.id} {method} {plain(path)} {' '.join(shown)}"


def plain(value: Any) -> str:
    """A value as one word of a line."""
    if isinstance(value, dict):
        return ",".join(f"{key}:{plain(item)}" for key, item in value.items()) or "-"
    text = json.dumps(value) if isinstance(value, str) else str(value)
    return text[1:-1] if isinstance(value, str) and re.fullmatch(r'"[!#-\[\]-~]+"', text) else text
