"""uvicorn around the page's application: an address that is known before anybody can ask, a browser, an end."""

import socket
import sys
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from isoflop.ui.address import question_of
from isoflop.ui.answer import answer
from isoflop.ui.server import build

HOST = "127.0.0.1"


def serve(files: Sequence[str], port: int, open_browser: bool) -> None:
    """Serve until a signal comes. Raises ValueError for a law that is not there, OSError where the port is taken."""
    missing = next((name for name in files if not Path(name).exists()), None)
    if missing is not None:
        raise ValueError(f"{missing}: no such file or directory; give a study, a law.json or a table of runs")
    quiet = {"log_level": "warning", "access_log": False, "server_header": False}
    config = uvicorn.Config(build(files), loop="asyncio", ws="none", lifespan="off", **quiet)  # type: ignore[arg-type]
    with _listening(port) as listening:
        address = f"http://{HOST}:{listening.getsockname()[1]}/"
        print(f"isoflop ui: {address} (Ctrl-C stops it)", file=sys.stderr, flush=True)
        threading.Thread(target=answer, args=(question_of(()),), daemon=True).start()  # families' curves are kept
        if open_browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        uvicorn.Server(config).run(sockets=[listening])


def _listening(port: int) -> socket.socket:
    """Bound to this machine alone."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen(128)  # before the address is told: who asks at once waits instead of being refused
        listening.set_inheritable(True)
    except OSError as error:
        listening.close()
        raise OSError(f"{HOST}:{port}: {error.strerror or error}; --port 0 takes a free one") from None
    return listening
