"""What the API says when something is wrong: OpenAI's error bodies and status codes."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from inazuma.errors import UserError
from inazuma.serve.request import Busy, TooLong

log = logging.getLogger("inazuma.serve")

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large", 415: "unsupported_media_type"}
_PYDANTIC_CODES = {"extra_forbidden": "unknown_parameter", "missing": "missing_required_parameter"}


class APIError(HTTPException):
    """Ends a request with a status and OpenAI's error body."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(status, message, dict(headers) if headers else None)
        self.param, self.code = param, code

    def body(self) -> dict[str, Any]:
        """`{"error": {"message", "type", "param", "code"}}`."""
        kind = _TYPES.get(self.status_code, "invalid_request_error")
        code = self.code or _CODES.get(self.status_code)
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status_code, self.headers)


def bad(param: str | None, message: str, code: str | None = "invalid_value") -> APIError:
    """A 400 that names the parameter."""
    return APIError(400, message, param=param, code=code)


def error_of(exception: BaseException) -> APIError:
    """What a client is told of an exception: nothing of our insides."""
    if isinstance(exception, APIError):
        return exception
    if isinstance(exception, Busy):
        wait = str(max(1, math.ceil(exception.retry_after)))
        return APIError(429, str(exception), code="server_busy", headers={"Retry-After": wait})
    if isinstance(exception, TooLong):
        return bad(None, str(exception), "context_length_exceeded")
    if isinstance(exception, UserError):
        return bad(None, str(exception))
    log.error("a request failed", exc_info=exception)
    return APIError(500, "the server failed on this request; its log says more", code="internal_error")


def install(app: FastAPI) -> None:
    """Every error of `app` gets OpenAI's body; FastAPI's 422 becomes 400. What nobody foresaw, the gate answers."""

    async def respond(_: Request, exception: Exception) -> JSONResponse:
        return error_of(exception).response()

    async def http_error(_: Request, exception: StarletteHTTPException) -> JSONResponse:
        if not isinstance(exception, APIError):
            message = {404: "no such route", 405: "this route does not take that method"}
            detail = message.get(exception.status_code, str(exception.detail))
            exception = APIError(exception.status_code, detail, headers=exception.headers)
        return exception.response()

    async def invalid(_: Request, exception: RequestValidationError) -> JSONResponse:
        return validation_error(exception.errors(), exception.body).response()

    for kind in (Busy, TooLong, UserError):
        app.add_exception_handler(kind, respond)
    app.add_exception_handler(StarletteHTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)


def validation_error(errors: Sequence[Mapping[str, Any]], body: Any) -> APIError:
    """One 400 from pydantic's list of what does not fit: the deepest field is named, with all that was said of it (a
    union says it once for each of its kinds)."""
    if any(error["type"] == "json_invalid" for error in errors):
        return APIError(400, "the body is not valid JSON", code="invalid_json")
    if not isinstance(body, dict):
        return APIError(400, "the body must be a JSON object", code="invalid_type")
    named = [(_path(error, body), error) for error in errors]
    depth = max(len(path) for path, _ in named)
    # A wrong kind of thing lacks fields too: its kind is what is wrong.
    named.sort(key=lambda one: one[1]["type"] != "literal_error")
    path, first = next((path, error) for path, error in named if len(path) == depth)
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    code = _PYDANTIC_CODES.get(first["type"], "invalid_type" if first["type"].endswith("_type") else "invalid_value")
    if code == "unknown_parameter":
        return bad(param, f"unknown parameter: {param}; it is not supported here, and nothing is ignored", code)
    if code == "missing_required_parameter":
        return bad(param, f"missing parameter: {param}", code)
    said = dict.fromkeys(error["msg"].removeprefix("Value error, ") for where, error in named if where == path)
    return bad(param, f"{param}: {' or '.join(said)}", code)


def _path(error: Mapping[str, Any], body: Any) -> list[str | int]:
    """Where in the body the error is; pydantic's location also names the member of a union, which the body has not."""
    path, at = [], body
    parts = [part for part in error["loc"] if part != "body"]
    for place, part in enumerate(parts):
        inside = part in at if isinstance(at, dict) else isinstance(at, list) and isinstance(part, int)
        if inside and (isinstance(at, dict) or part < len(at)):
            path.append(part)
            at = at[part]
        elif error["type"] == "missing" and place == len(parts) - 1:
            path.append(part)
    return path
