"""A conversation with a trained model, in the terminal.

isoflop chat my-llama
isoflop chat my-llama --system "Answer in one sentence." --temperature 0.7
printf 'Hi\\nAnd you?\\n' | isoflop chat my-llama --json

A line is a turn; an empty line, Ctrl-D or /quit ends it; /reset forgets. A checkpoint's own chat template is used, in a
sandbox; a base model is given a transcript to go on with. --json prints a document a turn.
"""

import argparse
import sys
from typing import TYPE_CHECKING

import msgspec

from isoflop.cli.asking import add_model, add_sampling, engine_of, open_model, sampling_of, show_at_once, size

if TYPE_CHECKING:
    from isoflop.engine.engine import Engine
    from isoflop.engine.opening import Opened
    from isoflop.engine.sampling import Sampling


class Turn(msgspec.Struct, frozen=True):
    """The JSON document of one turn."""

    user: str
    assistant: str
    finish: str
    prompt_tokens: int
    output_tokens: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_model(parser)
    parser.add_argument("--system", metavar="TEXT", help="what the assistant is told before the conversation")
    parser.add_argument("--memory", type=size, metavar="BYTES", help="of the cache (default: for the whole context)")
    parser.add_argument("--json", action="store_true", help="print a document a turn")
    add_sampling(parser)


def run(args: argparse.Namespace) -> int:
    """Talk until there is no more to say. Returns the exit code."""
    sampling = sampling_of(args)
    opened = open_model(args)
    from isoflop.engine.offline import room_for

    memory = args.memory or min(1 << 30, room_for(opened.model, opened.model.decoder.max_context, 1, args.cache_dtype))
    talk = _Talk(args, opened, engine_of(opened, args, memory, 1), sampling)
    try:
        while (line := _line(args.json)) not in (None, "", "/quit"):
            assert line is not None
            if line == "/reset":
                talk.reset()
            else:
                talk.turn(line)
    finally:
        opened.template.close()
    return 0


def _line(quiet: bool) -> str | None:
    """What the user says; None at the end."""
    if sys.stdin is None:  # closed
        return None
    try:
        return input("" if quiet or not sys.stdin.isatty() else "> ").strip()
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not UTF-8 text: {error.reason}") from None


class _Talk:
    def __init__(self, args: argparse.Namespace, opened: "Opened", engine: "Engine", sampling: "Sampling") -> None:
        self._args, self._opened, self._engine, self._sampling = args, opened, engine, sampling
        self.reset()

    def reset(self) -> None:
        """Forget all but the system's word."""
        from isoflop.engine.template import Message

        self._messages: list[Message] = [] if self._args.system is None else [Message("system", self._args.system)]

    def turn(self, said: str) -> None:
        """One question and its answer. What no longer fits the context is told, and forgotten."""
        from isoflop.engine.offline import write
        from isoflop.engine.template import Message

        messages = [*self._messages, Message("user", said)]
        prompt = self._opened.vocabulary.encode(self._opened.template.render(messages))
        room = self._opened.model.decoder.max_context - len(prompt)
        if room < 1:
            raise ValueError(
                f"the conversation has {len(prompt)} tokens and the model's context is "
                f"{self._opened.model.decoder.max_context}; /reset begins a new one"
            )
        sampling = msgspec.structs.replace(self._sampling, max_tokens=min(self._sampling.max_tokens, room))
        stops = (*self._args.stop, *self._opened.template.stops)
        show = None if self._args.json else show_at_once
        answer = write(self._engine, self._opened.vocabulary, [(prompt, sampling)], stops, show, start=True)[0]
        self._messages = [*messages, Message("assistant", answer.text)]
        if self._args.json:
            turn = Turn(said, answer.text, answer.finish, len(prompt), len(answer.tokens))
            sys.stdout.write(msgspec.json.encode(turn).decode() + "\n")
        else:
            sys.stdout.write("\n")
        sys.stdout.flush()
