"""`mulosd serve`: the OpenAI images API over one or several families, with previews, metrics and a page for people.

Needs the extra `serve`. `create_app(Settings(...))` is an ASGI application for any server; `run.serve` is the command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .settings import Settings

if TYPE_CHECKING:
    from .app import create_app

__all__ = ["Settings", "create_app"]

EXTRA = "the server needs FastAPI, uvicorn, sse-starlette and prometheus-client: pip install 'mulosd[serve]'"


def __getattr__(name: str) -> Any:
    if name != "create_app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check_extra()
    from .app import create_app

    return create_app


def check_extra() -> None:
    """ImportError that names the extra, where it is not installed."""
    from importlib.util import find_spec

    missing = [name for name in ("fastapi", "uvicorn", "sse_starlette", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise ImportError(f"{EXTRA} (missing here: {', '.join(missing)})")
