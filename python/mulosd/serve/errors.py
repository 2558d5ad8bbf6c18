"""Errors as the OpenAI API tells them: one body, a type for each status, and headers that guide a client's retries."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ApiError(HTTPException):
    """An error with an answer.

    Args:
        status: HTTP status.
        message: what was asked, what is possible, what to do.
        code: for programs, such as "queue_full".
        param: the field of the request that is wrong.
        retry_after: seconds after which another try may succeed.
        retry: whether a client should try again; None leaves it to the status.
        headers: further ones.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        retry: bool | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        told = dict(headers or {})
        if retry_after is not None:
            told["retry-after"] = str(math.ceil(retry_after))
        if retry is not None:
            told["x-should-retry"] = str(retry).lower()
        super().__init__(status, message, told)
        self.message, self.code, self.param = message, code, param

    @property
    def body(self) -> dict[str, Any]:
        """What the client reads."""
        usual = "server_error" if self.status_code >= 500 else "invalid_request_error"
        kind = TYPES.get(self.status_code, usual)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def answer(self) -> Response:
        return json_response(self.body, self.status_code, self.headers)


def json_response(values: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer in ASCII: a prompt may hold what UTF-8 cannot."""
    return Response(json.dumps(values), status, dict(headers or {}), "application/json")


def internal_error(request_id: str) -> ApiError:
    """What a bug tells outside: nothing but the number under which the log has it."""
    message = f"the server failed to answer this request; its log has the cause under {request_id}"
    return ApiError(500, message, code="internal_error", retry=False)


def validation_error(errors: list[Any]) -> ApiError:
    """The first of what pydantic found wrong, as a sentence."""
    first = errors[0] if errors else {}
    where = [str(part) for part in first.get("loc", ()) if part not in ("body", "query", "path")]
    kind, told = first.get("type", ""), str(first.get("msg", "it is not valid"))
    param = ".".join(where) or None
    if kind == "json_invalid":
        return ApiError(400, f"the body is no JSON: {first.get('ctx', {}).get('error', told)}", code="invalid_json")
    if kind == "missing":
        return ApiError(400, f"{param or 'the body'} is missing", param=param, code="missing_required_parameter")
    if kind == "extra_forbidden":
        message = f"there is no parameter {param!r}; /openapi.json lists those that there are"
        return ApiError(400, message, param=param, code="unknown_parameter")
    told = told.removeprefix("Value error, ")
    message = (
        f"{param}: {told}" if param else f"the body must be a JSON object (content-type: application/json): {told}"
    )
    return ApiError(400, message, param=param, code="invalid_value")


async def http_error(request: Request, error: Exception) -> Response:
    """What the framework refuses, in our words: unknown paths, wrong methods."""
    if isinstance(error, ApiError):
        return error.answer
    status, headers = getattr(error, "status_code", 500), getattr(error, "headers", None)
    message = f"{request.method} {request.url.path}: {HTTPStatus(status).phrase.lower()}"
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(status)
    return ApiError(status, message, code=code, headers=headers).answer


async def invalid(request: Request, error: Exception) -> Response:
    """A request that the schema refuses."""
    return validation_error(list(error.errors()) if isinstance(error, RequestValidationError) else []).answer


def install(app: FastAPI) -> None:
    """Have an application tell its errors this way."""
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
