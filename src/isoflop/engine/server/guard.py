"""What stands before every request: its token, the size of its body, and the patience for a client that stalls."""

import asyncio
import hmac
import time
from typing import NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from isoflop.engine.server.errors import ApiError

OPEN_PATHS = ("/health",)  # for probes, which have no token


class Patience(NamedTuple):
    """Bounds on one request. `body_s`: for its body to come; `stall_s`: for a client to take what is sent to it."""

    body_bytes: int = 4 << 20
    body_s: float = 30.0
    stall_s: float = 60.0


class Guard:
    """ASGI middleware: 401 without the token, 413 for a body that is too large, 408 for one that does not come; a
    client that does not read is disconnected."""

    def __init__(self, app: ASGIApp, token: str | None, patience: Patience) -> None:
        self._app, self._token, self._patience = app, token, patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        try:
            self._check(scope, headers)
            body = await self._body(headers, receive)
        except ApiError as refusal:
            answer = refusal.response()
            answer.headers["Connection"] = "close"  # the rest of the body is not waited for
            await answer(scope, receive, send)
            return
        except _GoneError:
            return
        await self._app(scope, _Replay(body, receive), self._patient(send))

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        if self._token is None or scope["path"] in OPEN_PATHS:
            return
        given = headers.get(b"authorization", b"")
        if not hmac.compare_digest(given, b"Bearer " + self._token.encode()):
            raise ApiError(401, "the bearer token is missing or wrong", code="invalid_api_key")

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        most, parts, size = self._patience.body_bytes, [], 0
        said = headers.get(b"content-length", b"")
        too_large = ApiError(413, f"the body has more than {most} bytes")
        if said.isdigit() and int(said) > most:
            raise too_large
        deadline = time.monotonic() + self._patience.body_s
        while True:
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                raise ApiError(408, f"the body did not come within {self._patience.body_s:g} s") from None
            if message["type"] == "http.disconnect":
                raise _GoneError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > most:
                raise too_large
            if not message.get("more_body", False):
                return b"".join(parts)

    def _patient(self, send: Send) -> Send:
        async def within(message: Message) -> None:
            async with asyncio.timeout(self._patience.stall_s):
                await send(message)

        return within


class _GoneError(Exception):
    """The client left before its body was complete."""


class _Replay:
    """`receive` that gives the body, then what the connection says."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        return await self._receive()
