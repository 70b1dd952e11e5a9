"""`isoflop VERB ...`: finds the verb, imports it alone, and turns a user's mistake into one line.

Exit codes: 0 fine; 1 the answer is no, or the work could not be finished; 2 the question was wrong.
"""

import argparse
import importlib
import keyword
import os
import sys
from typing import NoReturn

from isoflop import __version__

# Verb -> what it does. The module is isoflop.cli.<verb>, imported only when asked for, so that `--help` is instant.
VERBS = {
    "study": "plan the ladder, train it, fit, forecast, report; resumable",
    "zoo": "published architectures, with exact counts",
    "cost": "parameters, FLOPs, bytes, exactly; time, memory, money on devices",
    "calibrate": "measure the device at hand for a minute, for `cost --hardware this`",
    "check": "the exact counts proved on the architecture's own modules",
    "compare": "architectures side by side, and one dial turned until they match",
    "generate": "text that a trained model goes on with",
    "chat": "a conversation with a trained model, in the terminal",
    "serve": "a trained model behind an OpenAI-compatible HTTP API",
    "extend": "a trained model at a longer context, its loss by position before and after",
    "quantize": "a trained model with weights of few bits, and what that costs on held-out text",
    "import": "a Hugging Face model's weights as a checkpoint of ours",
    "export": "a checkpoint of ours as the Hugging Face model that computes the same",
    "fit": "a scaling law with its certificate, from any table of runs",
    "laws": "published scaling laws: constants, conventions, what they say of a run or a budget",
    "backtest": "whether forecasts of dearer runs from cheaper ones held, on any table of runs",
    "compare-runs": "two ladders of runs: the compute multiplier between them, or within noise",
    "plan": "what to train under a compute, data, memory and serving budget, and what would change the answer",
    "ui": "the planner as a page in the browser, on this machine alone",
    "next": "the runs to train next: those that most shrink the interval of a forecast, for a budget",
}

EXIT_NO = 1
EXIT_WRONG_QUESTION = 2
EXIT_INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line without the usage text."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(EXIT_WRONG_QUESTION)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    top = _top_parser()
    if not argv or argv[0] not in VERBS:
        args = top.parse_args(argv)
        top.print_help()
        return 0 if args.verb is None else EXIT_WRONG_QUESTION
    return _run_verb(argv[0], argv[1:])


def _top_parser() -> Parser:
    listing = "\n".join(f"  {verb:<12} {text}" for verb, text in VERBS.items())
    top = Parser(
        prog="isoflop",
        description=f"From a compute budget to a language model you can defend.\n\nverbs:\n{listing}",
        epilog="isoflop VERB --help tells the rest.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"isoflop {__version__}")
    top.add_argument("verb", nargs="?", choices=list(VERBS), metavar="VERB", help="one of the verbs above")
    return top


def _run_verb(verb: str, argv: list[str]) -> int:
    traceback = "--traceback" in argv
    if sys.stdout is None:
        return _complain(verb, OSError("standard output is closed"), traceback, EXIT_NO)
    try:
        name = verb.replace("-", "_") + ("_" if keyword.iskeyword(verb) else "")
        module = importlib.import_module(f"isoflop.cli.{name}")
        parser = Parser(
            prog=f"isoflop {verb}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
        module.add_arguments(parser)
        return int(module.run(parser.parse_args(argv)))
    except ValueError as mistake:
        return _complain(verb, mistake, traceback, EXIT_WRONG_QUESTION)
    except BrokenPipeError:  # who read has gone, such as `head`: not worth a line, and nothing can be flushed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_NO
    except OSError as failure:
        return _complain(verb, failure, traceback, EXIT_NO)
    except KeyboardInterrupt:
        print(f"isoflop {verb}: stopped", file=sys.stderr)
        return EXIT_INTERRUPTED


def _complain(verb: str, error: Exception, traceback: bool, code: int) -> int:
    if traceback:
        raise error
    print(f"isoflop {verb}: {_one_line(error)}", file=sys.stderr)
    return code


def _one_line(error: Exception) -> str:
    """What it says, with the control characters that a hostile file put there shown and not obeyed."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(error))


if __name__ == "__main__":
    raise SystemExit(main())
