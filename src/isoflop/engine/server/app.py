"""The application: paths, what guards them, and the document that describes them."""

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from fastapi import FastAPI, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from isoflop import __version__
from isoflop.engine.server import completions
from isoflop.engine.server.errors import (
    ApiError,
    ErrorBody,
    tell_api_error,
    tell_failure,
    tell_http_error,
)
from isoflop.engine.server.guard import Guard, Patience
from isoflop.engine.server.invalid import tell_invalid
from isoflop.engine.server.jobs import Desk
from isoflop.engine.server.metrics import Metrics
from isoflop.engine.server.protocol import (
    Detokenized,
    DetokenizeRequest,
    Health,
    Model,
    Models,
    Tokenized,
    TokenizeRequest,
)
from isoflop.engine.server.runner import Runner, Stepping
from isoflop.engine.server.service import Service

STATUSES = {
    400: "the request is not valid; the message names the field",
    401: "the bearer token is missing or wrong",
    404: "no such model",
    408: "the body did not come in time",
    413: "the body is too large",
    429: "too many requests wait; try again",
    500: "the server failed",
    503: "the server is about to stop, or its engine has failed",
    504: "the request took too long",
}


class Limits(NamedTuple):
    """`live`: requests that wait or run; `request_s`: the longest one may take."""

    live: int = 256
    request_s: float = 600.0
    patience: Patience = Patience()


class Server(NamedTuple):
    """The ASGI application and what stands behind it."""

    app: ASGIApp
    service: Service
    runner: Runner


def build(engine: Stepping, desk: Desk, notices: list[str], limits: Limits, token: str | None) -> Server:
    """The server of one model. `token`: clients must bring it; None: anybody may ask."""
    runner = Runner(engine, limits.live)
    metrics = Metrics(runner)
    service = Service(desk, runner, metrics, limits.request_s)

    @contextlib.asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncIterator[None]:
        runner.start()
        yield
        await runner.stop()
        desk.template.close()

    api = FastAPI(
        title="Isoflop",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # those pages fetch scripts from elsewhere
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    api.include_router(completions.routes(service))
    _add_paths(api, service, notices, time_made=int(time.time()))
    for kind, handler in (
        (ApiError, tell_api_error),
        (HTTPException, tell_http_error),
        (RequestValidationError, tell_invalid),
        (Exception, tell_failure),
    ):
        api.add_exception_handler(kind, handler)
    api.openapi = lambda: _described(api, token is not None)  # type: ignore[method-assign]
    paths = set(api.openapi()["paths"])
    return Server(_Counted(Guard(api, token, limits.patience), metrics, paths), service, runner)


def _add_paths(api: FastAPI, service: Service, notices: list[str], time_made: int) -> None:
    desk = service.desk
    model = Model(id=desk.name, created=time_made, max_model_len=desk.context)

    @api.get("/v1/models")
    async def models() -> Models:
        """The served model."""
        return Models(data=[model])

    @api.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Model:
        """The served model, by its name."""
        desk.check_model(name)
        return model

    @api.post("/tokenize")
    def tokenize(body: TokenizeRequest) -> Tokenized:
        """The tokens of a text."""
        desk.check_model(body.model)
        tokens = desk.encode(body.prompt, whole=body.add_special_tokens)
        return Tokenized(tokens=tokens, count=len(tokens), max_model_len=desk.context)

    @api.post("/detokenize")
    def detokenize(body: DetokenizeRequest) -> Detokenized:
        """The text of tokens."""
        desk.check_model(body.model)
        return Detokenized(prompt=desk.decode(body.tokens))

    @api.get("/health")
    async def health() -> Health:
        """Whether requests are taken; needs no token."""
        service.check_open()
        return Health(live=service.runner.live, notices=notices)

    @api.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _described(api: FastAPI, guarded: bool) -> dict[str, Any]:
    """The OpenAPI document, with our errors and not the framework's."""
    if api.openapi_schema:
        return api.openapi_schema
    document = get_openapi(title=api.title, version=api.version, routes=api.routes)
    schemas = document["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schema = ErrorBody.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= schema.pop("$defs") | {"ErrorBody": schema}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            operation["responses"].pop("422", None)
            operation["responses"] |= {str(s): {"description": t, "content": error} for s, t in STATUSES.items()}
            if guarded and path != "/health":
                operation["security"] = [{"token": []}]
    if guarded:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    api.openapi_schema = document
    return document


class _Counted:
    """ASGI middleware: answers by path and status. Unknown paths count together, or a client could fill memory."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: set[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.answers.labels(path, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counted)
