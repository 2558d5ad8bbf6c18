"""Requests and answers of the OpenAI images API, and what this server adds to them (`seed`, `mulosd`, …)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

# Logits are divided by it in float32.
LEAST_TEMPERATURE = 1e-3
Format = Literal["png", "webp", "jpeg"]


class Strict(BaseModel):
    """Values of the right type alone, and no field that does nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)


class DecoderOptions(Strict):
    """Beyond the OpenAI API: how to decode and to sample."""

    decoder: str | None = Field(None, max_length=500, description="such as mulo:scale=4:tau=0.02")
    temperature: float | None = Field(None, ge=0, le=100, allow_inf_nan=False, description="0 is greedy")
    top_k: int | None = Field(None, ge=0, le=2**31 - 1)
    top_p: float | None = Field(None, gt=0, le=1)
    partials: Literal["all"] | None = Field(None, description="every preview there is, instead of partial_images")
    maps: bool | None = Field(None, description="also tell which tokens were rejected and which were redrawn")

    @field_validator("temperature")
    @classmethod
    def _divides(cls, value: float | None) -> float | None:
        if value is not None and 0 < value < LEAST_TEMPERATURE:
            raise ValueError(f"must be 0 (greedy) or at least {LEAST_TEMPERATURE}")
        return value


class ImageRequest(Strict):
    """The body of POST /v1/images/generations."""

    prompt: str = Field(min_length=1)
    model: str | None = Field(None, max_length=200)
    n: int | None = Field(None, ge=1)
    size: str | None = Field(None, max_length=20, description="WIDTHxHEIGHT of the family, or auto")
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Format | None = None
    output_compression: int | None = Field(None, ge=0, le=100, description="of webp and jpeg")
    background: Literal["opaque", "auto", "transparent"] | None = None
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=3)
    seed: int | None = Field(None, ge=0, lt=2**63 - 64, description="image i of n has the seed + i; random if absent")
    guidance_scale: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    mulosd: DecoderOptions | None = None
    # Accepted, and of no effect here.
    moderation: Literal["low", "auto"] | None = None
    style: Literal["vivid", "natural"] | None = None
    user: str | None = Field(None, max_length=512)
    safety_identifier: str | None = Field(None, max_length=512)

    @model_validator(mode="after")
    def _fits(self) -> ImageRequest:
        if not self.prompt.strip():
            raise ValueError("the prompt is empty; say what to draw")
        if self.output_compression is not None and self.output_format in (None, "png"):
            raise ValueError("output_compression is for output_format webp and jpeg")
        if self.background == "transparent":
            raise ValueError("background: images here are opaque")
        return self


class TokenDetails(BaseModel):
    image_tokens: int
    text_tokens: int


class Usage(BaseModel):
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: TokenDetails


class Image(BaseModel):
    b64_json: str | None = None
    url: str | None = None
    mulosd: dict[str, Any]


class ImagesResponse(BaseModel):
    created: int
    data: list[Image]
    background: Literal["opaque"] = "opaque"
    output_format: Format
    quality: str
    size: str
    usage: Usage
    safety_identifier: str | None = None


class ImageEvent(BaseModel):
    """What the events of a stream that carry an image have in common."""

    b64_json: str
    background: Literal["opaque"] = "opaque"
    created_at: int
    output_format: Format
    quality: str
    size: str
    image_index: int
    mulosd: dict[str, Any]


class PartialEvent(ImageEvent):
    """An event `image_generation.partial_image` of a stream."""

    type: Literal["image_generation.partial_image"] = "image_generation.partial_image"
    partial_image_index: int


class CompletedEvent(ImageEvent):
    """An event `image_generation.completed` of a stream; one for each image."""

    type: Literal["image_generation.completed"] = "image_generation.completed"
    usage: Usage
    safety_identifier: str | None = None


class ModelFacts(BaseModel):
    """What the page and other tools need to know of a family."""

    image_sizes: list[str]
    scales: list[int]
    decoders: list[str]
    default_decoder: str
    qualities: dict[str, str]
    conditions: str
    objects: list[str]
    backgrounds: list[str]
    words: list[str]
    classes: list[str]
    example: str
    max_n: int
    max_prompt_chars: int


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    mulosd: ModelFacts


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Cancelled(BaseModel):
    id: str
    cancelled: bool


class Health(BaseModel):
    status: str


class Version(BaseModel):
    version: str
    torch: str
    device: str


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetail
