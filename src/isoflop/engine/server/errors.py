"""What goes wrong, as OpenAI's clients expect to be told."""

from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "unavailable_error",
    504: "timeout_error",
}


class ErrorDetail(BaseModel):
    """`param` is the field that was wrong, where it was one."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is no success."""

    error: ErrorDetail


class ApiError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """As JSON has it. Half characters of a hostile body are shown and not sent back."""
        clean = self.message.encode("utf-8", "backslashreplace").decode()
        param = None if self.param is None else self.param.encode("utf-8", "backslashreplace").decode()
        kind = KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": clean, "type": kind, "param": param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The answer."""
        headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "5"}}
        return JSONResponse(self.body(), self.status, headers.get(self.status))


async def tell_api_error(request: Request, error: Exception) -> JSONResponse:
    """Handler of ApiError."""
    assert isinstance(error, ApiError)
    return error.response()


async def tell_http_error(request: Request, error: Exception) -> JSONResponse:
    """Handler of what the framework raises: unknown paths, methods, bodies that are no JSON."""
    assert isinstance(error, HTTPException)
    answer = ApiError(error.status_code, str(error.detail)).response()
    answer.headers.update(error.headers or {})
    return answer


async def tell_failure(request: Request, error: Exception) -> JSONResponse:
    """Handler of our own mistakes."""
    return ApiError(500, "the server failed at this request; its log says where").response()
