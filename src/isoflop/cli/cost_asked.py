"""Which options of `isoflop cost` need, or exclude, which others: none is passed over in silence."""

import argparse
from collections.abc import Callable

LAYOUT = ("accumulate", "tensor", "pipeline", "context_parallel", "expert", "interleave", "shard")
TRAINING = ("micro_batch", "precision", "recompute", "kernels", *LAYOUT, "search", "batch", "tokens")
SERVING = ("prompt", "output", "serve_batch", "latency", "weights", "draft")
DRAFTING = ("drafted", "acceptance")


def require_all_used(args: argparse.Namespace, usual: Callable[[str], object]) -> None:
    """Raise ValueError for an option that would change nothing, as another is missing or stands against it. `usual`:
    the default of each."""

    def given(names: tuple[str, ...]) -> str | None:
        return next((_flag(name) for name in names if getattr(args, name) != usual(name)), None)

    needs = [
        (("devices", *TRAINING, "price", "serve", *SERVING, *DRAFTING), "hardware", "NAME"),
        (SERVING, "serve", ""),
        (DRAFTING, "draft", "ARCH"),
        (("batch",), "search", ""),
    ]
    for names, wanted, value in needs:
        flag = None if getattr(args, wanted) else given(names)
        if flag is not None:
            raise ValueError(f"{flag} says something only with {_flag(wanted)} {value}".rstrip())
    if args.price is not None and args.tokens is None and not args.serve:
        raise ValueError("--price says something only with --tokens D or --serve")
    for other, names, why in (("search", LAYOUT, "chooses the layout"), ("serve", TRAINING, "is not about training")):
        flag = given(names) if getattr(args, other) else None
        if flag is not None:
            raise ValueError(f"--{other} {why}, and {flag} was given; leave one of them out")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
