"""The page for people: three files beside this one, which use nothing but the public API."""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)


def install(app: FastAPI) -> None:
    """Serve the page."""
    for path, (name, kind) in FILES.items():
        data = (files(__package__ or "") / name).read_bytes()
        headers = {"content-security-policy": POLICY, "cache-control": "no-cache", "content-type": kind}

        async def answer(request: Request, data: bytes = data, headers: dict[str, str] = headers) -> Response:
            return Response(data, headers=headers)

        app.add_route(path, answer, methods=["GET"], include_in_schema=False)
