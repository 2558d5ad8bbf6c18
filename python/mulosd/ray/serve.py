"""The server as an application of Ray Serve: replicas of the same FastAPI app, each with engines of its own.

serve run mulosd.ray.serve:build family=emoji max_replicas=4 num_gpus=1 device=cuda
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig

from ..serve.settings import Settings
from .replica import Replica

# What asks beside requests for images: health, models, metrics, cancellations, and requests that are refused.
BESIDE = 32
# Settings of a process that listens and ends by itself, which Ray does for a replica.
NOT_HERE = ("port", "uds", "metrics_port", "drain_delay", "root_path")
# Their own names in a list would be texts of JSON.
TUPLES = {"family": "families", "api_key": "api_keys", "cors_origin": "cors_origins", "served_name": "served_names"}


class Replicas(BaseModel):
    """How many replicas there are, and what each of them is given.

    Args:
        min_replicas, max_replicas: as many as there always are, and at most.
        target_ongoing_requests: of a replica, above which another one starts; None is `max_running` of the server.
        num_cpus, num_gpus: of a replica; without num_gpus it is 1 where the device is a GPU. Replicas that share a GPU
            share its memory: give each a `kv_budget`.
        upscale_delay_s, downscale_delay_s: seconds for which more, or fewer, replicas must have been wanted.
    """

    model_config = ConfigDict(extra="forbid")

    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(1, ge=1)
    target_ongoing_requests: float | None = Field(None, gt=0)
    num_cpus: float = Field(1, ge=0)
    num_gpus: float | None = Field(None, ge=0)
    upscale_delay_s: float = Field(30, ge=0)
    downscale_delay_s: float = Field(600, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Replicas:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        return self


def build(args: Mapping[str, Any]) -> Application:
    """An application for `serve run` and for configuration files.

    Args:
        args: settings of the server by the names of `Settings`, and of `Replicas`; values may be texts, as of a command
            line. `family`, `api_key`, `cors_origin` and `served_name` take one or several, separated by commas. Keys
            are also taken from the environment variable MULOSD_API_KEY where this is called.

    Raises:
        ValueError: a name that there is not, or a value that cannot be.
    """
    settings, replicas = read(args)
    images = (settings.max_running + settings.max_waiting) * len(settings.families)
    gpus = float(settings.device.startswith("cuda")) if replicas.num_gpus is None else replicas.num_gpus

    def app() -> FastAPI:
        # In the replica, in whose process the engines are.
        from mulosd.ray.replica import make

        return make(settings)

    deployment = serve.deployment(
        name="mulosd",
        ray_actor_options={"num_cpus": replicas.num_cpus, "num_gpus": gpus},
        # The server refuses what is too much, with the words of its API: Ray must let it through.
        max_ongoing_requests=images + BESIDE,
        autoscaling_config=AutoscalingConfig(
            min_replicas=replicas.min_replicas,
            max_replicas=replicas.max_replicas,
            target_ongoing_requests=replicas.target_ongoing_requests or settings.max_running,
            upscale_delay_s=replicas.upscale_delay_s,
            downscale_delay_s=replicas.downscale_delay_s,
        ),
        graceful_shutdown_timeout_s=settings.drain_timeout + 5,
    )
    return deployment(serve.ingress(app)(Replica)).bind()


def read(args: Mapping[str, Any]) -> tuple[Settings, Replicas]:
    """The settings of the server and of its replicas; errors as of `build`."""
    known = {field.name for field in fields(Settings)} - set(NOT_HERE)
    values: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, value in args.items():
        own = TUPLES.get(name, name)
        if own not in known and own not in Replicas.model_fields:
            possible = sorted((known | set(Replicas.model_fields) | set(TUPLES)) - set(TUPLES.values()))
            raise ValueError(f"there is no setting {name!r} here; possible: {', '.join(possible)}")
        if own in TUPLES.values() and isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        (values if own in known else rest)[own] = value
    if "api_keys" not in values and os.environ.get("MULOSD_API_KEY"):
        values["api_keys"] = os.environ["MULOSD_API_KEY"].split()
    try:
        return TypeAdapter(Settings).validate_python(values), Replicas.model_validate(rest)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}") from error
