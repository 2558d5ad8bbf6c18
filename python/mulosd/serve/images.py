"""POST /v1/images/generations: from the checked body to JSON or a stream of events."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from sse_starlette.sse import EventSourceResponse
from starlette.requests import Request
from starlette.responses import Response

from ..canvas import Canvas
from ..engine.request import Update
from ..engine.stats import GenerationStats
from .errors import ApiError, internal_error, json_response
from .jobs import Job
from .pictures import base64_of, encode, rows_of
from .record import Record, logger, record_of
from .schema import CompletedEvent, Image, ImageRequest, ImagesResponse, PartialEvent, TokenDetails, Usage
from .served import Asked, Served
from .server import Server

T = TypeVar("T")
PING_SECONDS = 10
# Seconds a reader may take for one event before its request is dropped.
SEND_SECONDS = 30
# Random seeds are numbers that JavaScript keeps exactly.
RANDOM_SEEDS = 2**32


async def generate(server: Server, request: Request, body: ImageRequest) -> Response:
    """Answer a request for images.

    Raises:
        ApiError: it is refused, or fails as a whole.
    """
    record = record_of(request.scope)
    server.check_open()
    served = server.find(body.model)
    count = body.n or 1
    check_limits(server, body, count)
    # First of all a place in the queue: what is refused costs nothing.
    record.cleanup.enter_context(served.admission.places_for(count))
    asked = served.ask(body)
    work = Work(server, served, record, body, asked, count, str(request.base_url))
    record.outcome = "aborted"  # unless it gets to an end of another kind
    if body.stream:
        return EventSourceResponse(
            work.events(),
            ping=PING_SECONDS,
            sep="\n",
            send_timeout=SEND_SECONDS,
            shutdown_grace_period=server.settings.drain_timeout,
        )
    try:
        return await unless_gone(request, work.answer())
    except ApiError as error:
        record.outcome = outcome_of(error)
        raise
    except Exception:
        record.outcome = "failed"
        raise
    finally:
        record.cleanup.close()


def check_limits(server: Server, body: ImageRequest, count: int) -> None:
    """ApiError for what this server does not do."""
    settings = server.settings
    if count > settings.max_n:
        raise ApiError(
            400, f"n: at most {settings.max_n} images a request, got {count}", param="n", code="invalid_value"
        )
    if len(body.prompt) > settings.max_prompt_chars:
        raise ApiError(
            400,
            f"prompt: at most {settings.max_prompt_chars} characters, got {len(body.prompt)}",
            param="prompt",
            code="invalid_value",
        )
    if body.response_format == "url" and (server.store is None or body.stream):
        why = "events hold their images" if body.stream else "this server keeps no images (--image-store)"
        raise ApiError(400, f"response_format url: {why}; use b64_json", param="response_format", code="invalid_value")


def outcome_of(error: ApiError) -> str:
    """What becomes of a request that ends with an error once it was taken."""
    return "aborted" if error.code in ("cancelled", "client_gone") else "failed"


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work gives; when the client goes, the work is cancelled and ApiError 499 raised.

    A server tells a handler that streams, but none that computes: it has to listen beside its work.
    """
    task = asyncio.ensure_future(work)
    listener = asyncio.ensure_future(gone(request))
    try:
        await asyncio.wait({task, listener}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "the client has gone", code="client_gone", retry=False)
        return task.result()
    finally:
        listener.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def gone(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Work:
    """A request that was taken.

    Args:
        server, served: who draws.
        record: of the request.
        body, asked: what is wanted, as sent and as settled.
        count: images.
        base: address of this server as the client calls it, for addresses of images.
    """

    def __init__(
        self, server: Server, served: Served, record: Record, body: ImageRequest, asked: Asked, count: int, base: str
    ) -> None:
        self.server, self.served, self.record, self.body, self.asked = server, served, record, body, asked
        self.base, self.created = base, int(time.time())
        self.kind = body.output_format or "png"
        first = secrets.randbelow(RANDOM_SEEDS) if body.seed is None else body.seed
        self.seeds = [first + i for i in range(count)]
        options = body.mulosd
        self.maps = bool(options and options.maps)
        wanted: bool | int = body.partial_images or 0
        if options is not None and options.partials == "all":
            wanted = True
        # Previews cost pixels in the engine: as many are decoded as will be sent.
        self.previews: bool | int = wanted if body.stream else 0
        record.facts.update(
            family=served.name, n=count, seed=first, decoder=asked.decoder.name, stream=bool(body.stream)
        )
        if server.settings.log_prompts:
            record.facts["prompt"] = body.prompt

    async def answer(self) -> Response:
        """All images in one JSON body."""
        images: dict[int, Image] = {}
        async with aclosing(self._updates()) as updates:
            async for number, update in updates:
                data, facts = await self._finished(number, update)
                if self.body.response_format == "url" and self.server.store is not None:
                    name = await asyncio.to_thread(self.server.store.keep, data, self.kind)
                    images[number] = Image(url=f"{self.base}v1/images/{name}/content", mulosd=facts)
                else:
                    images[number] = Image(b64_json=await asyncio.to_thread(base64_of, data), mulosd=facts)
        self._done()
        response = ImagesResponse(
            created=self.created,
            data=[images[number] for number in range(len(self.seeds))],
            output_format=self.kind,
            quality=self.asked.quality,
            size=self.size,
            usage=self._usage(len(self.seeds)),
            safety_identifier=self.body.safety_identifier,
        )
        return json_response(response.model_dump(exclude_none=True))

    async def events(self) -> AsyncGenerator[dict[str, str], None]:
        """Events of a stream; a failure is the last of them."""
        try:
            async with aclosing(self._updates()) as updates:
                async for event in self._told(updates):
                    yield {"event": str(event["type"]), "data": json.dumps(event)}
            self._done()
        except ApiError as error:
            self.record.outcome = outcome_of(error)
            yield {"event": "error", "data": json.dumps(error.body)}
        except Exception:
            logger.exception("request %s failed", self.record.id)
            self.record.outcome = "failed"
            yield {"event": "error", "data": json.dumps(internal_error(self.record.id).body)}
        finally:
            self.record.cleanup.close()

    async def _told(self, updates: AsyncGenerator[tuple[int, Update], None]) -> AsyncGenerator[dict[str, Any], None]:
        """The events of updates."""
        canvases = [Canvas(self.asked.size, self.served.family.patch) for _ in self.seeds]
        sent = 0
        common: dict[str, Any] = {"created_at": self.created, "output_format": self.kind, "quality": self.asked.quality}
        async for number, update in updates:
            if update.kind == "final":
                data, facts = await self._finished(number, update)
                yield CompletedEvent(
                    **common,
                    b64_json=await asyncio.to_thread(base64_of, data),
                    size=self.size,
                    usage=self._usage(1),
                    image_index=number,
                    safety_identifier=self.body.safety_identifier,
                    mulosd=facts,
                ).model_dump()
                continue
            image = canvases[number].paint(update)
            data = await asyncio.to_thread(encode, image, {}, self.kind, self.body.output_compression)
            if not sent:
                self.server.metrics.preview.labels(self.served.name).observe(self.record.seconds)
                self.record.facts["preview_seconds"] = round(self.record.seconds, 4)
            yield PartialEvent(
                **common,
                b64_json=await asyncio.to_thread(base64_of, data),
                size=self.size,
                partial_image_index=sent,
                image_index=number,
                mulosd={"kind": update.kind, "row": update.row, "seconds": round(self.record.seconds, 4)},
            ).model_dump()
            sent += 1

    async def _updates(self) -> AsyncGenerator[tuple[int, Update], None]:
        """Updates of the images, under the number of the request: `stop` ends them."""
        job = Job(
            self.served.engine,
            self.body.prompt,
            self.seeds,
            self.server.settings.request_timeout,
            decoder=self.asked.decoder,
            sampling=self.asked.sampling,
            previews=self.previews,
        )
        with self.server.listed(self.record.id, job):
            async with aclosing(job.updates()) as updates:
                async for found in updates:
                    yield found

    async def _finished(self, number: int, update: Update) -> tuple[bytes, dict[str, Any]]:
        """The encoded image of a final update, and what is told beside it."""
        if update.image is None or update.stats is None or update.tokens is None:
            raise RuntimeError("a final update holds an image, its tokens and its statistics")
        stats = update.stats
        settings = self.served.remembers(self.asked, self.body.prompt, self.seeds[number])
        data = await asyncio.to_thread(encode, update.image, settings, self.kind, self.body.output_compression)
        self.server.metrics.image(self.served.name, stats, update.tokens.numel(), len(data))
        self.served.admission.took(stats.seconds["total"] - stats.waited)
        self._note(stats)
        facts: dict[str, Any] = {
            "seed": self.seeds[number],
            "decoder": settings["decoder"],
            "sampling": settings["sampling"],
            "family": self.served.name,
            "queue_seconds": stats.waited,
            "stats": {**stats.to_dict(), "settings": None},
            "warnings": self.asked.warnings,
        }
        del facts["stats"]["settings"]  # the decoder's text says the same
        if self.maps:
            facts["maps"] = {"rejected": rows_of(update.rejected), "resampled": rows_of(update.resampled)}
        return data, facts

    def _note(self, stats: GenerationStats) -> None:
        """Add an image to the log's line: the longest wait, and the seconds of stages together."""
        facts = self.record.facts
        facts["queue_seconds"] = round(max(stats.waited, facts.get("queue_seconds", 0.0)), 4)
        stages = facts.setdefault("stages", {})
        for stage, seconds in stats.seconds.items():
            if stage != "total":
                stages[stage] = round(stages.get(stage, 0.0) + seconds, 4)

    def _done(self) -> None:
        self.record.outcome = "finished"
        self.server.metrics.latency.labels(self.served.name).observe(self.record.seconds)

    @property
    def size(self) -> str:
        return f"{self.asked.size}x{self.asked.size}"

    def _usage(self, count: int) -> Usage:
        family = self.served.family
        text = family.ar.config.cond_len * count
        output = (self.asked.size // family.patch) ** 2 * count
        details = TokenDetails(image_tokens=0, text_tokens=text)
        return Usage(input_tokens=text, output_tokens=output, total_tokens=text + output, input_tokens_details=details)
