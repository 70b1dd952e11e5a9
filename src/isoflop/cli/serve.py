"""A checkpoint behind an OpenAI-compatible HTTP API.

isoflop serve studies/quickstart
isoflop serve my-llama --port 8080 --token-file secret.txt --memory 8G

Paths: /v1/completions, /v1/chat/completions, /v1/models, /tokenize, /detokenize, /health, /metrics, /openapi.json.
SIGTERM or Ctrl-C: requests under way finish, new ones get 503; a second one ends it at once. Exit code 1 where requests
could not be finished.
"""

import argparse
import os
import sys
from pathlib import Path

from isoflop.cli.asking import add_model, engine_of, open_model, size

TOKEN_VARIABLE = "ISOFLOP_TOKEN"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_model(parser)
    parser.add_argument("--name", metavar="NAME", help="of the model in the API (default: the folder's)")
    parser.add_argument("--host", default="127.0.0.1", metavar="H", help="address to listen at (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, metavar="P", help="port; 0 takes a free one (default 8000)")
    secret = parser.add_mutually_exclusive_group()
    secret.add_argument("--token", metavar="T", help="clients must bring this bearer token (others see it in ps)")
    secret.add_argument("--token-file", type=Path, metavar="FILE", help=f"that from a file, or from ${TOKEN_VARIABLE}")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--memory", type=size, default=1 << 30, metavar="BYTES", help="of the cache (default 1G)")
    limits.add_argument("--running", type=int, default=64, metavar="N", help="requests computed at once (default 64)")
    limits.add_argument("--queue", type=int, default=256, metavar="N", help="requests that wait or run (default 256)")
    limits.add_argument("--context", type=int, metavar="N", help="tokens of prompt and output (default: the model's)")
    limits.add_argument("--body", type=size, default=4 << 20, metavar="BYTES", help="of a request's body (default 4M)")
    limits.add_argument("--request-s", type=float, default=600.0, metavar="S", help="for one request (default 600)")
    limits.add_argument("--body-s", type=float, default=30.0, metavar="S", help="for a body to come (default 30)")
    limits.add_argument("--stall-s", type=float, default=60.0, metavar="S", help="for a client to read (default 60)")
    limits.add_argument("--drain-s", type=float, default=30.0, metavar="S", help="to finish at the end (default 30)")
    limits.add_argument("--connections", type=int, default=1024, metavar="N", help="open at once (default 1024)")


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop. Returns the exit code."""
    _check(args)
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as missing:
        raise ValueError(f"serving needs the package {missing.name}: pip install 'isoflop[serve]'") from None
    token = _token(args)
    opened = open_model(args)
    engine = engine_of(opened, args, args.memory, args.running)

    from isoflop.engine.server.app import Limits, build
    from isoflop.engine.server.guard import Patience
    from isoflop.engine.server.jobs import Desk
    from isoflop.engine.server.serving import DROPPED, serve

    guide = engine.options.guide
    assert guide is not None
    name = args.name or opened.folder.resolve().name
    context = min(args.context or opened.model.decoder.max_context, opened.model.decoder.max_context)
    desk = Desk(name, opened.vocabulary, opened.template, guide, context)
    limits = Limits(args.queue, args.request_s, Patience(args.body, args.body_s))
    server = build(engine, desk, engine.notices, limits, token)
    n_dropped = serve(server, name, args.host, args.port, args.drain_s, args.connections, args.stall_s)
    if n_dropped:
        print(f"isoflop serve: stopped, and {n_dropped} requests were not finished", file=sys.stderr)
    return DROPPED if n_dropped else 0


def _check(args: argparse.Namespace) -> None:
    for option in ("running", "queue", "context", "connections"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise ValueError(f"--{option} {value} must be at least 1")
    for option in ("request_s", "body_s", "stall_s", "drain_s"):
        if not 0 < getattr(args, option) < 1e9:
            raise ValueError(
                f"--{option.replace('_', '-')} {getattr(args, option):g} must be a number of seconds above 0"
            )
    if not 0 <= args.port < 65536:
        raise ValueError(f"--port {args.port} must be from 0 to 65535")


def _token(args: argparse.Namespace) -> str | None:
    """The bearer token, without the line's end. Raises ValueError where it is empty or no header can hold it."""
    if args.token_file is not None:
        try:
            token: str | None = args.token_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--token-file {args.token_file}: {getattr(error, 'strerror', None) or error}") from None
    else:
        token = args.token if args.token is not None else os.environ.get(TOKEN_VARIABLE)
    if token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
        raise ValueError("the token must be visible ASCII characters, at least one")
    return token
