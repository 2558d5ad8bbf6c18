"""Routes for those who run the server: health and metrics, also on a port of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from starlette.responses import Response

from .errors import json_response
from .layers import Guard
from .schema import Health
from .server import Server

TEXT = "text/plain; version=0.0.4; charset=utf-8"
Refusals = dict[int | str, dict[str, Any]]


def measured(server: Server) -> FastAPI:
    """An application of health and metrics alone, which asks for no key."""
    app = FastAPI(title="mulosd metrics", openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, settings=replace(server.settings, api_keys=(), insecure=True))
    add_health(app, server, {})
    add_metrics(app, server, {})
    return app


def add_health(app: FastAPI, server: Server, refusals: Refusals) -> None:
    """Routes for supervisors and balancers."""
    answers: dict[int | str, dict[str, Any]] = {503: {"model": Health, "description": "why not"}, **refusals}

    def health(status: str, ok: bool) -> Response:
        return json_response(Health(status=status).model_dump(), 200 if ok else 503, {"cache-control": "no-store"})

    @app.get("/health", response_model=Health, responses=answers, operation_id="health")
    async def alive() -> Response:
        """Whether the process is worth keeping: 503 when an engine is dead."""
        dead = server.dead
        return health(f"dead: {', '.join(dead)}" if dead else "ok", not dead)

    @app.get("/health/ready", response_model=Health, responses=answers, operation_id="ready")
    async def ready() -> Response:
        """Whether requests are taken: not while starting, shutting down, or dead."""
        why = "dead" if server.dead else "draining" if server.draining else "ready" if server.warm else "starting"
        return health(why, server.ready)


def add_metrics(app: FastAPI, server: Server, refusals: Refusals) -> None:
    """The route that Prometheus asks."""

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **refusals},
        operation_id="metrics",
    )
    async def metrics() -> Response:
        return Response(server.scrape(), headers={"content-type": TEXT})
