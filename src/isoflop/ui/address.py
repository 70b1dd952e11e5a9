"""An address's query, a command line and a question, from one to the other: the query holds the options of
`isoflop plan` under their own names, read by that verb's own parser.

An address comes from anywhere, so it names no file: laws and architectures are published ones, or those that were named
when the page was started.
"""

import argparse
import shlex
from collections.abc import Sequence
from typing import NoReturn

from isoflop.architecture.find import published_decoder
from isoflop.cli import plan as verb
from isoflop.decide.command import command_of
from isoflop.decide.question import FAMILIES, Question
from isoflop.laws.presets import PRESETS

OPTIONS = (
    *("flops", "accelerator-hours", "dollars", "deadline", "quality-of", "target-loss", "law", "n", "d", "loss"),
    *("family", "vocab", "train-context", "count", "hardware", "devices", "price", "device-memory", "unique-tokens"),
    *("repeats", "served-tokens", "context", "prompt-share", "latency", "weights", "serve-memory", "within", "level"),
)
FIRST = (("flops", "5.76e23"),)  # asked when nothing is: Chinchilla's budget

Query = Sequence[tuple[str, str]]


class _Parser(argparse.ArgumentParser):
    """argparse, whose mistakes are ValueErrors."""

    def error(self, message: str) -> NoReturn:
        """One line, that begins with the option."""
        raise ValueError(message.removeprefix("argument "))


def question_of(query: Query, files: Sequence[str] = ()) -> Question:
    """The question of a query. `files`: laws and architectures on disk that it may name. Raises ValueError in one line
    that begins with the option at fault."""
    parser = _Parser(prog="isoflop plan", add_help=False, allow_abbrev=False)
    verb.add_arguments(parser)
    question = verb.question_of(parser.parse_args(_arguments(query)))
    _require_published(question, files)
    return question


def command_line(query: Query) -> str:
    """The command line of a query as it stands, whether or not it asks anything."""
    pairs = ([f"--{name}={value}"] if value.startswith("-") else [f"--{name}", value] for name, value in query or FIRST)
    return shlex.join(["isoflop", "plan", *(word for pair in pairs for word in pair)])


def query_of(question: Question) -> list[tuple[str, str]]:
    """The query that asks the question."""
    words = shlex.split(command_of(question))[2:]
    return [(flag.removeprefix("--"), value) for flag, value in zip(words[::2], words[1::2], strict=True)]


def _arguments(query: Query) -> list[str]:
    unknown = next((name for name, _ in query if name not in OPTIONS), None)
    if unknown is not None:
        raise ValueError(f"--{unknown}: is no option of a question; valid: {', '.join(OPTIONS)}")
    return [f"--{name}={value}" for name, value in (query or FIRST)]


def _require_published(question: Question, files: Sequence[str]) -> None:
    laws = {preset.name for preset in PRESETS} | set(files)
    foreign = next((law.name for law in question.laws if law.name not in laws), None)
    if foreign is not None:
        raise ValueError(f"--law {foreign}: is no published law; a file is named at the start: isoflop ui {foreign}")
    for family in question.families:
        if family not in FAMILIES and family not in files and ("/" in family or published_decoder(family) is None):
            raise ValueError(f"--family {family}: is neither a family ({', '.join(FAMILIES)}) nor a published model")
