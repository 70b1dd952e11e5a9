"""Text that a trained model goes on with.

isoflop generate studies/quickstart "def main("
echo "Once upon a time" | isoflop generate my-llama --temperature 0 --max-tokens 100
isoflop generate CKPT "Name: " --regex "[A-Z][a-z]+" --n 5 --json

Without PROMPT, or where it is -, the prompt is standard input. The text comes as it is made; with --n several are made
together, and each is printed once it is whole. --json prints them with tokens and reasons. With --draft another guesses
and the model judges: a line tells how many guesses were right, and what that gains (some tokens are said again for it).
"""

import argparse
import sys
from typing import TYPE_CHECKING

import msgspec

from isoflop.cli.asking import add_model, add_sampling, engine_of, open_model, sampling_of, show_at_once, size
from isoflop.cli.strategies import add_strategy, strategy_of

if TYPE_CHECKING:
    from isoflop.engine.engine import Engine
    from isoflop.engine.gain import Gain
    from isoflop.engine.offline import Text

MOST_TEXTS = 4096


class Output(msgspec.Struct, frozen=True):
    """One text. `finish`: stop (an end token, a stop string, a grammar's end) or length; `mean_logprob`: nats a token
    under the model, before temperature and the like."""

    text: str
    tokens: list[int]
    finish: str
    mean_logprob: float | None


class Generated(msgspec.Struct, frozen=True):
    """The JSON document."""

    model: str
    prompt: str
    prompt_tokens: int
    outputs: list[Output]
    notices: list[str]
    drafts: "Gain | None" = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_model(parser)
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="the text to go on from (default: standard input)")
    parser.add_argument("--n", type=int, default=1, metavar="N", help="texts; they share the prompt (default 1)")
    parser.add_argument("--memory", type=size, metavar="BYTES", help="of the cache (default: what the texts need)")
    parser.add_argument("--json", action="store_true", help="print the document instead of the text")
    add_sampling(parser)
    add_strategy(parser)


def run(args: argparse.Namespace) -> int:
    """Generate and print. Returns the exit code."""
    if not 1 <= args.n <= MOST_TEXTS:
        raise ValueError(f"--n {args.n} must be from 1 to {MOST_TEXTS}")
    sampling = sampling_of(args, logprobs=0)
    prompt = _prompt(args.prompt)
    opened = open_model(args)
    from isoflop.engine.offline import begin, room_for, write

    tokens = begin(prompt, opened.vocabulary)
    left = opened.model.decoder.max_context - len(tokens)
    if args.max_tokens is None and 0 < left < sampling.max_tokens:
        sampling = msgspec.structs.replace(sampling, max_tokens=left)
    strategy = strategy_of(args)
    room = len(tokens) + sampling.max_tokens + strategy.further_tokens(opened.vocabulary)
    memory = args.memory or room_for(opened.model, room, args.n, args.cache_dtype)
    engine = engine_of(opened, args, memory, args.n)
    for notice in engine.notices:
        print(f"isoflop generate: {notice}", file=sys.stderr)
    if strategy.name == "plain":
        show = show_at_once if args.n == 1 and not args.json else None
        texts = write(engine, opened.vocabulary, [(tokens, sampling)] * args.n, args.stop, show)
        _print(args, prompt, len(tokens), texts, engine.notices, _gain(args, engine, [tokens] * args.n))
    else:
        strategy.run(engine, opened.vocabulary, tokens, sampling)
    return 0


def _gain(args: argparse.Namespace, engine: "Engine", prompts: list[list[int]]) -> "Gain | None":
    if args.draft is None:
        return None
    from isoflop.engine.gain import gain

    return gain(engine, prompts)


def _prompt(said: str | None) -> str:
    if said is not None and said != "-":
        return said
    if sys.stdin is None:
        raise ValueError("no PROMPT, and standard input is closed")
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not UTF-8 text: {error.reason} at byte {error.start}") from None


def _print(
    args: argparse.Namespace,
    prompt: str,
    n_prompt: int,
    texts: "list[Text]",
    notices: list[str],
    drafts: "Gain | None",
) -> None:
    if args.json:
        outputs = [Output(t.text, t.tokens, t.finish, t.mean_logprob) for t in texts]
        document = Generated(str(args.model), prompt, n_prompt, outputs, list(notices), drafts)
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(document)).decode() + "\n")
    elif args.n == 1:
        sys.stdout.write("\n")
    else:
        for i, text in enumerate(texts, 1):
            sys.stdout.write(f"[{i}, {text.finish}]\n{text.text}\n\n")
    if drafts is not None and not args.json:
        print(f"isoflop generate: {drafts.text}", file=sys.stderr)
