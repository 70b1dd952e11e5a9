"""The page's server: for browsers on this machine, asked by this page alone.

GET / the page, /page/NAME its parts, /api/plan?OPTIONS the answer, /report.html?OPTIONS the answer as one file.
"""

import asyncio
import time
from collections.abc import Sequence
from html import escape
from importlib.resources import files as package_files

import msgspec
from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from isoflop.architecture.find import published_names
from isoflop.decide.question import DEFAULT_LAW, FAMILIES, LawChoice
from isoflop.decide.sources import average
from isoflop.hardware import accelerators
from isoflop.laws.presets import PRESETS
from isoflop.ui.address import question_of
from isoflop.ui.answer import document
from isoflop.ui.export import report

OURS = ("127.0.0.1", "localhost", "[::1]")
MOST_QUERY = 8192  # bytes
PARTS = {"style.css": "text/css", "page.js": "text/javascript", "draw.js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def build(files: Sequence[str] = ()) -> ASGIApp:
    """The application. `files`: laws on disk, by path, that may be asked about."""
    api = FastAPI(title="Isoflop", docs_url=None, redoc_url=None, openapi_url=None)
    one_at_a_time, page = asyncio.Lock(), _page(files)

    @api.get("/")
    async def index() -> Response:
        return Response(page, media_type="text/html")

    @api.get("/page/{name}")
    async def part(name: str) -> Response:
        if name not in PARTS:
            return Response(status_code=404)
        return Response(_read(name), media_type=PARTS[name])

    @api.get("/api/plan")
    async def plan(request: Request) -> Response:
        query = request.query_params.multi_items()
        async with one_at_a_time:
            if await request.is_disconnected():  # the page has asked something newer
                return Response(status_code=204)
            start = time.perf_counter()
            told = await run_in_threadpool(document, query, files)
        told["ms"] = round((time.perf_counter() - start) * 1e3)
        return Response(msgspec.json.encode(told), media_type="application/json")

    @api.get("/report.html")
    async def whole(request: Request) -> Response:
        try:
            question = question_of(request.query_params.multi_items(), files)
            text = await run_in_threadpool(report, question)
        except ValueError as mistake:
            return Response(str(mistake), status_code=400, media_type="text/plain")
        own = {"Content-Disposition": 'attachment; filename="isoflop-plan.html"'}
        return Response(text, media_type="text/html", headers=own)

    return _Local(api)


class _Local:
    """ASGI middleware. A page elsewhere can make a browser ask this machine: its name would be another one in `Host`
    (DNS rebinding), or the browser says that the request crosses sites. Nothing is ever sent here but a query."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = _refusal(scope)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *known]}
            await send(message)

        await (self._app if refusal is None else refusal)(scope, receive, with_headers)


def _refusal(scope: Scope) -> Response | None:
    headers = dict(scope["headers"])
    host = headers.get(b"host", b"").decode("latin-1").lower()
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if name not in OURS:
        return Response("this page answers at 127.0.0.1 and localhost alone", 421, media_type="text/plain")
    site = headers.get(b"sec-fetch-site", b"none")
    if site not in (b"same-origin", b"none") and scope["path"] != "/":
        return Response("another site may not ask", 403, media_type="text/plain")
    if len(scope["query_string"]) > MOST_QUERY:
        return Response(f"the query has more than {MOST_QUERY} bytes", 414, media_type="text/plain")
    return None


def _page(files: Sequence[str]) -> str:
    """The page with the names that there are to choose from."""
    laws = [*filter(_plans, (preset.name for preset in PRESETS)), *files]
    text = _read("index.html").replace("{families}", "".join(map(_checkbox, FAMILIES)))
    text = text.replace("{laws}", "".join(map(_checkbox, laws)))
    text = text.replace("{hardware}", "".join(f"<option>{escape(name)}</option>" for name in accelerators()))
    text = text.replace("{published}", "".join(f"<option>{escape(name)}</option>" for name in published_names()))
    data = f'data-law="{DEFAULT_LAW}" data-families="{",".join(FAMILIES)}"'
    return text.replace("<body>", f"<body {data}>")


def _plans(law: str) -> bool:
    """Whether a published law can plan: some are of other things than N and D."""
    try:
        average((LawChoice(name=law),), FAMILIES[0])
    except ValueError:
        return False
    return True


def _checkbox(name: str) -> str:
    shown = escape(name)
    return f'<label><input type="checkbox" value="{shown}"><span>{shown}</span></label>'


def _read(name: str) -> str:
    return package_files("isoflop.ui").joinpath(f"page/{name}").read_text(encoding="utf-8")
