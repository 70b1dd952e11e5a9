"""How far a long copy is, a line every few seconds on standard error."""

import sys
import time
from collections.abc import Callable

EVERY_S = 2.0


def progress(verb: str) -> Callable[[int, int], None]:
    """Called with bytes done and bytes in all; short copies say nothing."""
    started = told = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told < EVERY_S:
            return
        told = now
        left = (now - started) * (total - done) / max(1, done)
        print(f"{verb}: {done / 1e9:.2f} of {total / 1e9:.2f} GB, about {left:.0f} s left", file=sys.stderr)

    return tell
