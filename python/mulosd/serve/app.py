"""The application: routes, what they are documented to answer, and the engines' beginning and end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import torch
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from .._version import __version__
from ..engine.engine import Engine
from . import errors, images, page
from .errors import ApiError, json_response
from .layers import IMAGES, layers
from .measured import add_health, add_metrics
from .metrics import Metrics
from .record import logger
from .schema import Cancelled, ErrorBody, ImageRequest, ImagesResponse, Model, ModelList, Version
from .server import Server, load_engines
from .settings import Settings

DESCRIPTION = "The OpenAI images API over autoregressive families, with previews while an image is drawn."


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route documents beside its success."""
    every = sorted({401, 403, *statuses})
    return {status: {"model": ErrorBody, "description": "see `error.message`"} for status in every}


class Application(FastAPI):
    """Documents no 422: what the schema refuses is a 400 here."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            schema: dict[str, Any] = super().openapi()
            for path in schema["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                schema["components"]["schemas"].pop(name, None)
        return super().openapi()


def create_app(settings: Settings | None = None, engines: Sequence[Engine] | None = None) -> FastAPI:
    """The server as an ASGI application.

    Args:
        settings: None is the default ones.
        engines: of the families; None loads those of the settings when the application starts.

    Raises:
        ValueError: an engine cannot draw what the settings draw by default.
    """
    settings = settings or Settings()
    metrics = Metrics([e.family.name for e in engines or ()], settings.device)
    server = Server(settings, metrics)
    server.open(engines or ())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if not server.families:
            server.open(await asyncio.to_thread(load_engines, settings))
        warming = server.warming = asyncio.create_task(server.warm_up())
        warming.add_done_callback(log_failure)
        yield
        warming.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await warming
        await server.close()

    app = Application(
        title="mulosd",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.server = server
    errors.install(app)
    for layer, options in layers(settings, metrics):
        app.add_middleware(layer, **options)
    add_images(app, server)
    add_models(app, server)
    add_operations(app, server)
    if settings.page:
        page.install(app)
    return app


def log_failure(task: asyncio.Task[None]) -> None:
    """A warm-up that fails leaves the server not ready, with the cause in the log."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("warming up failed", exc_info=error)


def add_images(app: FastAPI, server: Server) -> None:
    """Routes that make images."""
    names = ["image_generation.partial_image", "image_generation.completed", "error"]
    data = {"type": "string", "contentMediaType": "application/json"}
    event = {"type": "object", "properties": {"event": {"type": "string", "enum": names}, "data": data}}
    stream = {"text/event-stream": {"schema": event}}

    @app.post(
        IMAGES,
        response_model=ImagesResponse,
        responses={
            200: {"model": ImagesResponse, "description": "JSON, or events with stream=true", "content": stream},
            **refusals(400, 404, 409, 413, 429, 500, 503),
        },
        operation_id="create_image",
    )
    async def create_image(request: Request, body: ImageRequest) -> Response:
        return await images.generate(server, request, body)

    @app.post(
        "/v1/requests/{request_id}/cancel",
        response_model=Cancelled,
        responses=refusals(404, 413),
        operation_id="cancel_request",
    )
    async def cancel_request(request_id: str) -> Response:
        """End a request under way, by the `x-request-id` that it was sent with or answered with."""
        if not server.stop(request_id):
            raise ApiError(404, "no such request is under way", param="request_id", code="not_found")
        return json_response(Cancelled(id=request_id, cancelled=True).model_dump())

    if server.store is None:
        return
    store = server.store

    @app.get(
        "/v1/images/{image_id}/content",
        response_class=Response,
        responses={200: {"content": {f"image/{kind}": {} for kind in ("png", "webp", "jpeg")}}, **refusals(404)},
        operation_id="image_content",
    )
    async def image_content(image_id: str) -> Response:
        found = await asyncio.to_thread(store.find, image_id)
        if found is None:
            raise ApiError(404, "there is no such image", param="image_id", code="not_found")
        return Response(found[0], media_type=found[1])


def add_models(app: FastAPI, server: Server) -> None:
    """Routes that say what there is."""

    @app.get("/v1/models", response_model=ModelList, responses=refusals(), operation_id="list_models")
    async def list_models() -> ModelList:
        return ModelList(data=[served.model(name) for name, served in server.names.items()])

    @app.get("/v1/models/{model}", response_model=Model, responses=refusals(404), operation_id="get_model")
    async def get_model(model: str) -> Model:
        return server.find(model).model(model)


def add_operations(app: FastAPI, server: Server) -> None:
    """Routes for those who run the server."""
    add_health(app, server, refusals())
    add_metrics(app, server, refusals())

    @app.get("/version", response_model=Version, responses=refusals(), operation_id="version")
    async def version() -> Version:
        return Version(version=__version__, torch=torch.__version__, device=server.settings.device)
