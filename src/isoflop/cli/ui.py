"""The planner as a page in your browser, on this machine alone: move a control, and see what the answer becomes.

isoflop ui
isoflop ui --port 0 --no-open
isoflop ui studies/quickstart runs.csv

Every state of the page has an address, and shows the `isoflop plan` command line that gives the same answer. Laws of
your own (a study's directory, a law.json, a table of runs) are named here. Ctrl-C stops it.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("laws", nargs="*", metavar="LAW", help="laws on disk to offer beside the published ones")
    parser.add_argument("--port", type=int, default=8765, metavar="P", help="port; 0 takes a free one (default 8765)")
    parser.add_argument("--no-open", action="store_true", help="do not open a browser, only print the address")


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop. Returns the exit code."""
    if not 0 <= args.port < 65536:
        raise ValueError(f"--port {args.port} must be from 0 to 65535")
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as missing:
        raise ValueError(f"the page needs the package {missing.name}: pip install 'isoflop[serve]'") from None

    from isoflop.ui.serving import serve

    serve(args.laws, args.port, not args.no_open)
    return 0
