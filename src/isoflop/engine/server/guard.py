"""What stands before every request: its token, the size of its body, and the patience for it to come."""

import asyncio
import contextlib
import hmac
import time
from typing import NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from isoflop.engine.server.errors import ApiError

OPEN_PATHS = ("/health",)  # for probes, which have no token
DROPPED_BYTES = 64 << 20  # of a body that was refused, and likewise its seconds
DROPPED_S = 5.0


class Patience(NamedTuple):
    """Bounds on one request's body, and on how long it may take to come."""

    body_bytes: int = 4 << 20
    body_s: float = 30.0


class Guard:
    """ASGI middleware: 401 without the token, 413 for a body that is too large, 408 for one that does not come."""

    def __init__(self, app: ASGIApp, token: str | None, patience: Patience) -> None:
        self._app, self._token, self._patience = app, token, patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, incoming = dict(scope["headers"]), _Incoming(receive)
        try:
            self._check(scope, headers)
            body = await self._body(headers, incoming)
        except ApiError as refusal:
            incoming.ended |= b"expect" in headers  # the body comes only where it is asked for
            await self._refuse(refusal, scope, incoming, send)
            return
        except _GoneError:
            return
        await self._app(scope, _Replay(body, receive), send)

    async def _refuse(self, refusal: ApiError, scope: Scope, incoming: "_Incoming", send: Send) -> None:
        """Answer at once, then read and drop what is still being sent, within bounds: to close on bytes that nobody
        read resets the connection, and the answer can be lost with it."""
        answer = refusal.response()
        answer.headers["Connection"] = "close"

        async def unfinished(message: Message) -> None:
            more = {"more_body": True} if message["type"] == "http.response.body" else {}
            await send({**message, **more})

        await answer(scope, incoming, unfinished)
        dropped = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DROPPED_S):
                while not incoming.ended and dropped < DROPPED_BYTES:
                    dropped += len((await incoming()).get("body", b""))
        await send({"type": "http.response.body", "body": b""})

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        if self._token is None or scope["path"] in OPEN_PATHS:
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        # The scheme's name is of any case, with any number of spaces behind it (RFC 9110, section 11.4).
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(b" "), self._token.encode()):
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


class _GoneError(Exception):
    """The client left before its body was complete."""


class _Incoming:
    """`receive`, and whether the body `ended` or the client left."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self.ended = receive, False

    async def __call__(self) -> Message:
        message = await self._receive()
        self.ended |= not message.get("more_body", False)
        return message


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
