"""What generate, chat and serve share: which model, how its tokens are chosen, and how much memory it may take."""

import argparse
import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop.cli.drafting import ROW_COST, add_drafts, draft_for
from isoflop.cost.cache import CACHE_DTYPES

if TYPE_CHECKING:
    from isoflop.engine.engine import Engine
    from isoflop.engine.opening import Opened
    from isoflop.engine.sampling import Grammar, Sampling

OUTPUT_TOKENS = 256
MOST_THREADS = 1024
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def add_model(parser: argparse.ArgumentParser) -> None:
    """CKPT, how it is loaded, and who guesses for it."""
    parser.add_argument("model", type=Path, metavar="CKPT", help="a checkpoint, a Hugging Face folder, or a study")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="of the weights (default: as stored)")
    parser.add_argument("--cache-dtype", choices=CACHE_DTYPES, help="of the cache (default: the weights')")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads (default: as many as cores)")
    add_drafts(parser)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How tokens are chosen."""
    choice = parser.add_argument_group("choice of tokens")
    choice.add_argument("--max-tokens", type=int, metavar="N", help=f"of output (default {OUTPUT_TOKENS} or less)")
    choice.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0 is greedy (default 1)")
    choice.add_argument("--top-k", type=int, default=0, metavar="K", help="only the K likeliest (default: all)")
    choice.add_argument("--top-p", type=float, default=1.0, metavar="P", help="the likeliest of P together")
    choice.add_argument("--min-p", type=float, default=0.0, metavar="P", help="those at least P times the likeliest")
    choice.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R", help="of tokens seen (default 1)")
    choice.add_argument("--presence-penalty", type=float, default=0.0, metavar="X", help="of tokens in the output")
    choice.add_argument("--frequency-penalty", type=float, default=0.0, metavar="X", help="for each time in the output")
    choice.add_argument("--seed", type=int, metavar="S", help="the same seed, the same text (default: a new one)")
    choice.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends the output; repeatable")
    choice.add_argument("--ignore-eos", action="store_true", help="the model's end token does not end the output")
    form = choice.add_mutually_exclusive_group()
    form.add_argument("--json-schema", type=Path, metavar="FILE", help="the output is JSON that obeys this schema")
    form.add_argument("--regex", metavar="PATTERN", help="the output matches this expression")


def sampling_of(args: argparse.Namespace, logprobs: int | None = None) -> "Sampling":
    """The choices made. Raises ValueError naming the option."""
    import_torch()
    from isoflop.engine.sampling import Sampling
    from isoflop.engine.text import MOST_STOPS, check_stops

    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    values = {name: getattr(args, name) for name in (*names, "seed", "ignore_eos")}
    most = OUTPUT_TOKENS if args.max_tokens is None else args.max_tokens
    grammar = _grammar(args)
    if len(args.stop) > MOST_STOPS:
        raise ValueError(f"--stop: {len(args.stop)} strings; at most {MOST_STOPS}")
    try:
        check_stops(args.stop)
        return Sampling(**values, max_tokens=most, logprobs=logprobs, grammar=grammar)
    except ValueError as error:
        name, rest = str(error).split(" ", 1)
        raise ValueError(f"--{name.replace('_', '-')} {rest}") from None


def _grammar(args: argparse.Namespace) -> "Grammar | None":
    from isoflop.engine.sampling import JsonSchema, Regex

    if args.regex is not None:
        return Regex(args.regex)
    if args.json_schema is None:
        return None
    try:
        return JsonSchema(args.json_schema.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--json-schema {args.json_schema}: {getattr(error, 'strerror', None) or error}") from None


def size(text: str) -> int:
    """Bytes: a number, or one with K, M or G (of 1024)."""
    unit = text[-1:].upper()
    digits, factor = (text[:-1], UNITS[unit]) if unit in UNITS and unit else (text, 1)
    try:
        value = int(float(digits) * factor)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 512M or 4G") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be more than nothing")
    return value


def show_at_once(text: str) -> None:
    """Print text as it comes."""
    sys.stdout.write(text)
    sys.stdout.flush()


def import_torch() -> None:
    """Import torch as fast as it can be. It leaves 160,000 objects, none of them garbage: the collector would look
    through them while they come and again when the process ends, a third of a cold start."""
    if "torch" in sys.modules:
        return
    gc.disable()
    try:
        import torch  # noqa: F401
    finally:
        gc.enable()
    gc.freeze()


def open_model(args: argparse.Namespace) -> "Opened":
    """The model named. Raises ValueError."""
    import_torch()
    import torch

    from isoflop.engine.opening import open_checkpoint

    if args.drafts < 1:
        raise ValueError(f"--drafts {args.drafts} must be at least 1")
    if args.threads is not None:
        if not 1 <= args.threads <= MOST_THREADS:
            raise ValueError(f"--threads {args.threads} must be from 1 to {MOST_THREADS}")
        torch.set_num_threads(args.threads)
    if args.device is not None:
        try:
            torch.empty(0, device=args.device)
        except (RuntimeError, AssertionError) as error:
            said = str(error).splitlines()[0]
            raise ValueError(f"--device {args.device}: {said}") from None
    return open_checkpoint(args.model, args.dtype, args.device)


def _machine_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def engine_of(opened: "Opened", args: argparse.Namespace, memory: int, most_running: int) -> "Engine":
    """An engine with `memory` bytes of caches."""
    from isoflop.engine.engine import Engine, Options
    from isoflop.engine.grammar import LazyGrammars

    if args.device in (None, "cpu") and memory > (most := _machine_bytes()):
        raise ValueError(f"a cache of {memory} bytes (--memory) is more than the {most} of this machine")
    options = Options(
        memory=memory,
        most_running=most_running,
        dtype=args.cache_dtype,
        end_tokens=opened.vocabulary.end_tokens,
        guide=LazyGrammars(opened.vocabulary).guide,
        drafts=args.drafts,
        row_cost=ROW_COST,
    )
    engine = Engine(opened.model, options)
    draft_for(engine, opened, args)
    return engine
