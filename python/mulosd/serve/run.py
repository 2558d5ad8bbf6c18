"""Running the application: uvicorn, and signals that let requests end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Literal

import uvicorn
from fastapi import FastAPI

from .app import create_app
from .measured import measured
from .record import logger
from .server import Server, load_engines
from .settings import Settings

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class GracefulServer(uvicorn.Server):
    """uvicorn, with our signals: the first one lets requests end while it still listens, so that balancers see that it
    is not ready; the second one ends the process.

    Args:
        app: what `create_app` made.

    Attributes:
        code: exit code of the process: 0 when every request under way could end, 1 otherwise.
    """

    def __init__(self, app: FastAPI) -> None:
        super().__init__(config_of(app, lifespan="on"))
        self.state: Server = app.state.server
        self.code = 0
        self._ending: asyncio.Task[None] | None = None
        self._asked = False

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()

        def note(number: int, frame: FrameType | None) -> None:
            if self._asked:
                os._exit(128 + number)
            self._asked = True
            loop.call_soon_threadsafe(self.end)

        former = {number: signal.signal(number, note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def end(self) -> None:
        """Begin the end; once."""
        if self._ending is None:
            logger.info("shutting down: %d images under way", self.state.under_way)
            self._ending = asyncio.get_running_loop().create_task(self._end())

    async def _end(self) -> None:
        if not await self.state.drain():
            self.code = 1
        self.should_exit = True


class Beside(uvicorn.Server):
    """A server that leaves signals to another one of the process."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def config_of(app: FastAPI, lifespan: Literal["on", "off"]) -> uvicorn.Config:
    """How uvicorn runs an application of ours."""
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=10,
        lifespan=lifespan,
        ws="none",
    )


def configure_log() -> None:
    """Lines of the server go to stderr as they are; warnings and errors of uvicorn too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name, level in (("mulosd.serve", logging.INFO), ("uvicorn", logging.WARNING)):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(level)


def serve(settings: Settings) -> int:
    """Serve until a signal; returns the exit code.

    Raises:
        ValueError: a family that cannot be.
        OSError: the address cannot be had.
    """
    configure_log()
    app = create_app(settings, load_engines(settings))
    listeners = [listen(settings)]
    server = GracefulServer(app)
    logger.info("listening on %s", address(settings, listeners[0]))
    try:
        if settings.metrics_port is not None:
            beside = replace(settings, port=settings.metrics_port, uds=None, root_path="")
            listeners.append(listen(beside))
            logger.info("metrics on %s/metrics", address(beside, listeners[1]))
        asyncio.run(both(server, *listeners))
    finally:
        for listener in listeners:
            listener.close()
        if settings.uds is not None:
            remove_socket(settings.uds)
    return 1 if app.state.server.dead else server.code


async def both(server: GracefulServer, listener: socket.socket, metrics: socket.socket | None = None) -> None:
    """Serve until a signal; metrics too, until the server has ended."""
    if metrics is None:
        await server.serve(sockets=[listener])
        return
    beside = Beside(config_of(measured(server.state), lifespan="off"))
    serving = asyncio.create_task(beside.serve(sockets=[metrics]))
    try:
        await server.serve(sockets=[listener])
    finally:
        beside.should_exit = True
        await serving


def listen(settings: Settings) -> socket.socket:
    """A bound socket; OSError says which address cannot be had."""
    if settings.uds is not None:
        remove_socket(settings.uds)
        family, where, shown = socket.AF_UNIX, settings.uds, settings.uds
    else:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, where, shown = found[0][0], found[0][4], f"{settings.host}:{settings.port}"  # type: ignore[assignment]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if settings.uds is None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
    except OSError as error:
        listener.close()
        raise OSError(
            f"cannot listen on {shown}: {error.strerror or error}; choose another --port or --host"
        ) from error
    return listener


def remove_socket(path: str) -> None:
    """Remove a socket that an earlier server left; anything else stays."""
    try:
        if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):  # noqa: PTH110, PTH112, PTH113
            os.unlink(path)  # noqa: PTH108
    except OSError:
        pass


def address(settings: Settings, listener: socket.socket) -> str:
    """Where the server is found."""
    if settings.uds is not None:
        return f"unix:{settings.uds}"
    name = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{name}:{listener.getsockname()[1]}"
