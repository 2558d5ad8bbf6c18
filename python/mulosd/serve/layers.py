"""Layers around the application, as plain ASGI: records of requests, headers, keys, hosts, and the limit of bodies."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, internal_error
from .metrics import Metrics
from .record import KEY, Record, line, logger, request_id
from .settings import Settings

IMAGES = "/v1/images/generations"
OPEN = ("/health", "/health/ready")
LOCAL = ("localhost", "127.0.0.1", "[::1]")
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


class Records:
    """The outermost layer: a record, a line in the log and a count for each request, whatever becomes of it.

    Args:
        app: the rest.
        settings: of the server.
        metrics: where it counts.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self._under_way: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = Record(request_id(Headers(scope=scope).get("x-request-id"), self._under_way))
        scope[KEY] = record
        self._under_way.add(record.id)
        status = 0

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = record.id
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, told)
        except asyncio.CancelledError:
            if not status and record.outcome == "refused":  # its client went before it was looked at
                record.outcome = "aborted"
            raise
        except Exception:
            logger.exception("request %s failed", record.id)
            record.outcome = "failed"
            if status:  # the answer has begun: all that is left is to break it off
                raise
            await internal_error(record.id).answer(scope, receive, told)
        finally:
            record.cleanup.close()
            self._under_way.discard(record.id)
            self._count(scope, record, status)

    def _count(self, scope: Scope, record: Record, status: int) -> None:
        method, path = scope["method"], path_of(scope)
        route = getattr(scope.get("route"), "path", None) or "other"
        self.metrics.responses.labels(route, str(status)).inc()
        if method == "POST" and path == IMAGES:
            self.metrics.requests.labels(record.outcome).inc()
            record.facts = {"outcome": record.outcome, **record.facts}
        # What asks every few seconds is news only when it changes.
        if status != 200 or path not in (*OPEN, "/metrics"):
            logger.info(line(record, method, path, status, self.settings.log_format))


class Guard:
    """Refuses whoever may not ask: without a key, from a foreign web page, or by a foreign name of this machine.

    A key comes as `Authorization: Bearer KEY`, or, for browsers, as the password of `Basic`.

    Args:
        app: the rest.
        settings: of the server.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings
        self._keys = [digest(key) for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            error = self._refusal(path_of(scope), scope["method"], Headers(scope=scope))
            if error is not None:
                await error.answer(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _refusal(self, path: str, method: str, headers: Headers) -> ApiError | None:
        host = headers.get("host", "")
        if self.settings.loopback and self.settings.uds is None and name_of(host) not in LOCAL:
            # A page of the web may point a name of its own at this machine.
            return ApiError(403, "this server answers to localhost alone", code="host_not_allowed")
        origin = headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc != host and origin not in self.settings.cors_origins
        if foreign and method not in ("GET", "HEAD"):
            return ApiError(
                403, f"web pages of {origin} may not ask this server (--cors-origin)", code="origin_not_allowed"
            )
        if not self._keys or path in OPEN or (path == "/metrics" and self.settings.metrics_open):
            return None
        given = digest(key_of(headers.get("authorization", "")))
        # All are compared, so that the time does not tell which one is near.
        if sum(hmac.compare_digest(given, key) for key in self._keys):
            return None
        way = "Bearer" if path.startswith("/v1/") else 'Basic realm="mulosd"'
        return ApiError(
            401,
            "a key is needed: Authorization: Bearer KEY",
            code="invalid_api_key",
            headers={"www-authenticate": way},
        )


def path_of(scope: Scope) -> str:
    """The path of a request as routes are written, without the prefix under which the application is mounted."""
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


class Mounted:
    """Puts the application under a prefix, which a proxy in front may have cut off a path, or may not.

    Args:
        app: the rest.
        root: the prefix, such as "/images".
    """

    def __init__(self, app: ASGIApp, root: str) -> None:
        self.app, self.root = app, root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            here = path if path.startswith(f"{self.root}/") else self.root + path
            scope = {**scope, "root_path": self.root, "path": here}
        await self.app(scope, receive, send)


def key_of(header: str) -> str:
    """The key of an Authorization header; nothing where there is none."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
        except ValueError:
            return ""
    return value.strip() if scheme.lower() == "bearer" else ""


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def name_of(host: str) -> str:
    """The name of a Host header, without the port."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()


class BodyLimit:
    """Refuses bodies beyond a number of bytes, by their header or as they come.

    Args:
        app: the rest.
        most: bytes.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdecimal() or int(length) > self.most:
            await self._error().answer(scope, receive, send)
            return
        came = 0

        async def limited() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > self.most:
                raise self._error()
            return message

        await self.app(scope, limited, send)

    def _error(self) -> ApiError:
        return ApiError(413, f"the body may have {self.most} bytes at most", code="body_too_large")


def layers(settings: Settings, metrics: Metrics) -> list[tuple[Callable[..., Any], dict[str, Any]]]:
    """All layers from the innermost to the outermost, with their arguments."""
    from starlette.middleware.cors import CORSMiddleware

    cors = {
        "allow_origins": list(settings.cors_origins),
        "allow_methods": ["GET", "POST"],
        "allow_headers": ["authorization", "content-type", "x-request-id"],
        "expose_headers": ["x-request-id", "retry-after"],
    }
    return [
        (BodyLimit, {"most": settings.max_body}),
        (Guard, {"settings": settings}),
        *([(CORSMiddleware, cors)] if settings.cors_origins else []),
        (Records, {"settings": settings, "metrics": metrics}),
        *([(Mounted, {"root": settings.root_path})] if settings.root_path else []),
    ]
