"""A replica of Ray Serve: the application in a process that Ray began."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, ClassVar

from fastapi import FastAPI
from ray.exceptions import RayError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..serve.app import create_app
from ..serve.run import configure_log
from ..serve.server import Server
from ..serve.settings import Settings
from .mirror import Mirror


class Replica:
    """What Ray asks beside the application. A process has one."""

    server: ClassVar[Server | None] = None

    def check_health(self) -> None:
        """RuntimeError when an engine is dead: Ray then starts another replica."""
        dead = [] if Replica.server is None else Replica.server.dead
        if dead:
            raise RuntimeError(f"dead: {', '.join(dead)}")


class Departures:
    """Tells the application that a client has gone as any server does: by the message `http.disconnect`.

    A replica asks Ray's proxy for what the client sends. When the client leaves, Ray cancels the request and this
    question with it, in an order that changes: the question may end with an error first, which is the same news.

    Args:
        app: the rest.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def told() -> Message:
            try:
                return await receive()
            except RayError:  # cancelled, or the proxy is no more: either way nobody is there who would read
                return {"type": "http.disconnect"}

        await self.app(scope, told if scope["type"] == "http" else receive, send)


def make(settings: Settings) -> FastAPI:
    """The application of a replica: it takes requests once it is warm, and Ray gets its metrics."""
    configure_log()
    app = create_app(settings)
    server = Replica.server = app.state.server
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        async with inner(app) as state:
            if server.warming is not None:
                await server.warming  # what fails here fails the replica, with its cause
            copying = asyncio.create_task(Mirror(server).run())
            try:
                yield state
            finally:
                copying.cancel()
                with suppress(asyncio.CancelledError):
                    await copying

    app.router.lifespan_context = lifespan
    app.add_middleware(Departures)
    return app
