"""What a server is told once: where it listens, who may ask, and how much."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

# Decoders of the API's `quality`: the floor, and the tokens of serial decoding in fewer forwards. What is not here, or
# cannot draw a family, takes the decoder of requests that name none.
QUALITIES = {"low": "draft-only", "high": "jacobi", "xhigh": "jacobi", "max": "jacobi", "hd": "jacobi"}
# What becomes of a size that the family does not draw: it is refused, or the nearest one is drawn.
SIZE_POLICIES = ("strict", "nearest")
ALL_QUALITIES = ("auto", "low", "medium", "high", "xhigh", "max", "standard", "hd")
KIB = 1024


@dataclass(frozen=True)
class Settings:
    """Settings of a server.

    Args:
        families: bundled names or folders; the first one is the default model.
        host, port, uds: where to listen; a `uds` path takes the place of host and port.
        device, dtype, quantization: of every family, see `Engine`.
        decoder: text of the decoder of requests that name none; None is each family's default.
        qualities: texts of the decoders of the API's `quality`.
        max_running, kv_budget: see `SchedulerConfig`; of each family.
        max_waiting: images that may wait beside those that run, of each family; more are refused with 429.
        max_n: images of one request.
        max_prompt_chars: letters of a prompt.
        max_body: bytes of a request's body.
        request_timeout: seconds that a request may take; then it ends with 503.
        drain_delay: seconds between SIGTERM and the wait for requests, in which balancers see that it is not ready.
        drain_timeout: seconds that requests under way are then given.
        api_keys: any of them is asked of every request but /health; none asks nothing.
        insecure: listen beyond this machine without a key.
        metrics_open: answer /metrics without a key.
        metrics_port: a further port of this host for /metrics and /health, without a key; for `mulosd serve` alone.
        size_policy: "strict" refuses a size that the family does not draw, "nearest" draws the nearest one.
        root_path: prefix of every address where a proxy puts the server below one, such as "/images".
        cors_origins: web origins that may ask from a browser.
        served_names: further names of the first family.
        image_store: folder that images of `response_format=url` are kept in; None refuses it.
        page: serve the page for people.
        log_format: "text" or "json".
        log_prompts: put prompts into the log.
        warmup: draw one image of every family before being ready.

    Raises:
        ValueError: a value that cannot be, or a host beyond this machine without a key.
    """

    families: tuple[str, ...] = ("emoji",)
    host: str = "127.0.0.1"
    port: int = 8000
    uds: str | None = None
    device: str = "cpu"
    dtype: str | None = None
    quantization: str | None = None
    decoder: str | None = None
    qualities: Mapping[str, str] = field(default_factory=lambda: dict(QUALITIES))
    max_running: int = 8
    kv_budget: int | None = None
    max_waiting: int = 64
    max_n: int = 10
    max_prompt_chars: int = 4000
    max_body: int = 64 * KIB
    request_timeout: float = 120.0
    drain_delay: float = 0.0
    drain_timeout: float = 30.0
    api_keys: tuple[str, ...] = ()
    insecure: bool = False
    metrics_open: bool = False
    metrics_port: int | None = None
    size_policy: str = "strict"
    root_path: str = ""
    cors_origins: tuple[str, ...] = ()
    served_names: tuple[str, ...] = ()
    image_store: Path | None = None
    page: bool = True
    log_format: str = "text"
    log_prompts: bool = False
    warmup: bool = True

    def __post_init__(self) -> None:
        if not self.families:
            raise ValueError("a server needs at least one family")
        for name, least in (("max_running", 1), ("max_waiting", 0), ("max_n", 1), ("max_prompt_chars", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.max_body < KIB:
            raise ValueError(f"max_body must be at least {KIB} bytes, got {self.max_body}")
        for name in ("drain_delay", "drain_timeout"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 seconds or more, got {getattr(self, name)}")
        if not self.request_timeout > 0:
            raise ValueError(f"request_timeout must be above 0 seconds, got {self.request_timeout}")
        if self.log_format not in ("text", "json"):
            raise ValueError(f"log_format must be text or json, got {self.log_format!r}")
        if self.size_policy not in SIZE_POLICIES:
            raise ValueError(f"size_policy must be {' or '.join(SIZE_POLICIES)}, got {self.size_policy!r}")
        if self.root_path and re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", self.root_path) is None:
            raise ValueError(
                f"root_path must begin with a slash and end with none, such as /images: {self.root_path!r}"
            )
        if self.metrics_port is not None and not 0 <= self.metrics_port < 2**16:
            raise ValueError(f"metrics_port must be from 0 to 65535, got {self.metrics_port}")
        for quality in self.qualities:
            if quality not in ALL_QUALITIES:
                raise ValueError(f"there is no quality {quality!r}; choose from {', '.join(ALL_QUALITIES)}")
        if any(not key.strip() or not key.isascii() for key in self.api_keys):
            raise ValueError("an API key is a text of ASCII letters, and not empty")
        if not (self.loopback or self.api_keys or self.insecure):
            raise ValueError(
                f"host {self.host!r} is reached from other machines, and no key is asked for: give one (--api-key), "
                f"or say that anybody may draw (--insecure)"
            )
        if self.image_store is not None and not self.image_store.is_dir():
            raise ValueError(f"image_store {self.image_store}: there is no such folder; create it first")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can ask."""
        if self.uds is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
