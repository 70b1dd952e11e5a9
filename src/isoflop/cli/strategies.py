"""generate's strategies: more compute for one answer (isoflop.engine.search)."""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from isoflop.engine.engine import Engine
    from isoflop.engine.offline import Text
    from isoflop.engine.sampling import Sampling
    from isoflop.engine.vocabulary import Vocabulary

NAMES = ("plain", "best-of", "majority", "beam", "budget")

THINK_MOST, THINK_MORE, THINK_CLOSE = 256, "Wait", "\nFinal answer:"

DRAWN = {  # what a search for the likeliest text makes no use of, and the values that say nothing
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "draft": None,
}


OWN = {  # what one strategy alone makes use of, and the values that say nothing
    "length_penalty": ("beam", 1.0),
    "think_least": ("budget", 0),
    "think_most": ("budget", THINK_MOST),
    "think_more": ("budget", THINK_MORE),
    "think_end": ("budget", None),
    "think_close": ("budget", THINK_CLOSE),
}


def add_strategy(parser: argparse.ArgumentParser) -> None:
    """The strategy and its numbers."""
    group = parser.add_argument_group("strategy")
    group.add_argument("--strategy", choices=NAMES, default="plain", help="how an answer is found (default plain)")
    group.add_argument("--answer", metavar="REGEX", help="majority: what is an answer; its first group, its last match")
    group.add_argument("--length-penalty", type=float, default=1.0, metavar="A", help="beam: log p / length^A")
    group.add_argument("--think-least", type=int, default=0, metavar="N", help="budget: tokens of thinking (default 0)")
    group.add_argument("--think-most", type=int, default=THINK_MOST, metavar="N", help="budget: likewise (default 256)")
    group.add_argument("--think-more", default=THINK_MORE, metavar="TEXT", help="budget: in place of an early end")
    group.add_argument("--think-end", metavar="TEXT", help="budget: ends thinking, beside the model's end token")
    group.add_argument("--think-close", default=THINK_CLOSE, metavar="TEXT", help="budget: before the answer")


@dataclass(frozen=True)
class Strategy:
    """What was asked for."""

    args: argparse.Namespace

    @property
    def name(self) -> str:
        """One of NAMES."""
        return str(self.args.strategy)

    def further_tokens(self, vocabulary: "Vocabulary") -> int:
        """Of room, beside prompt and output."""
        if self.name != "budget":
            return 0
        a = self.args
        return int(a.think_most) + len(vocabulary.encode(a.think_more)) + len(vocabulary.encode(a.think_close))

    def run(self, engine: "Engine", vocabulary: "Vocabulary", prompt: list[int], sampling: "Sampling") -> None:
        """Find the answer and print it."""
        how: dict[str, Callable[..., tuple[str, Any]]] = {
            "best-of": self._best,
            "majority": self._majority,
            "beam": self._beam,
            "budget": self._budget,
        }
        text, document = how[self.name](engine, vocabulary, prompt, sampling)
        if self.args.json:
            whole = {"model": str(self.args.model), "strategy": self.name, "text": text, **document}
            text = msgspec.json.format(msgspec.json.encode(whole)).decode()
        sys.stdout.write(text + "\n")

    def _tries(
        self, engine: "Engine", vocabulary: "Vocabulary", prompt: list[int], sampling: "Sampling"
    ) -> "list[Text]":
        from isoflop.engine.search import best_of

        return best_of(engine, vocabulary, prompt, sampling, self.args.n, self.args.stop)

    def _best(self, *asked: Any) -> tuple[str, Any]:
        tries = self._tries(*asked)
        return tries[0].text, {"tries": [_told(text) for text in tries]}

    def _majority(self, *asked: Any) -> tuple[str, Any]:
        from isoflop.engine.search import majority

        vote = majority(self._tries(*asked), self.args.answer)
        return vote.answer, {"votes": vote.votes, "tries": vote.tries, "likeliest": _told(vote.text)}

    def _beam(
        self, engine: "Engine", vocabulary: "Vocabulary", prompt: list[int], sampling: "Sampling"
    ) -> tuple[str, Any]:
        from isoflop.engine.search import beam_search

        ends = () if sampling.ignore_eos else vocabulary.end_tokens
        beams = beam_search(engine, prompt, self.args.n, sampling.max_tokens, ends, self.args.length_penalty)
        texts = [vocabulary.decode(beam.tokens) for beam in beams]
        found = [
            {"text": text, "logprob": beam.logprob, "tokens": list(beam.tokens), "ended": beam.ended}
            for text, beam in zip(texts, beams, strict=True)
        ]
        return texts[0], {"beams": found}

    def _budget(
        self, engine: "Engine", vocabulary: "Vocabulary", prompt: list[int], sampling: "Sampling"
    ) -> tuple[str, Any]:
        from isoflop.engine.search import Budget, force_budget

        a = self.args
        budget = Budget(a.think_least, a.think_most, more=a.think_more, end=a.think_end, close=a.think_close)
        thought = force_budget(engine, vocabulary, prompt, sampling, budget, a.stop)
        told = {"thinking": thought.thinking, "thinking_tokens": thought.n_tokens, "forced": thought.forced}
        whole = thought.answer.text if a.json else f"{thought.thinking}{a.think_close}{thought.answer.text}"
        return whole, told | {"answer": _told(thought.answer)}


def strategy_of(args: argparse.Namespace) -> Strategy:
    """Raises ValueError where the options do not go together."""
    if (args.strategy == "majority") != (args.answer is not None):
        raise ValueError("--answer REGEX and --strategy majority need each other")
    for name, (strategy, none) in OWN.items():
        if args.strategy != strategy and getattr(args, name) != none:
            raise ValueError(f"--{name.replace('_', '-')} is of --strategy {strategy}, and this is {args.strategy}")
    if args.think_end == "":
        raise ValueError("--think-end: is empty; give the text that ends thinking, or leave it out")
    if args.strategy == "budget" and args.n != 1:
        raise ValueError(f"--n {args.n}: a budget of thinking is for one answer")
    if args.strategy == "beam" and (args.regex is not None or args.json_schema is not None):
        raise ValueError("--strategy beam follows no grammar")
    if args.strategy == "beam" and args.stop:
        raise ValueError("--strategy beam knows no stop strings")
    if args.strategy == "beam" and (drawn := [name for name, none in DRAWN.items() if getattr(args, name) != none]):
        raise ValueError(f"--strategy beam draws nothing: --{drawn[0].replace('_', '-')} would change nothing")
    if not math.isfinite(args.length_penalty):
        raise ValueError(f"--length-penalty {args.length_penalty} must be a finite number")
    return Strategy(args)


def _told(text: "Text") -> dict[str, Any]:
    return {"text": text.text, "finish": text.finish, "tokens": text.tokens, "mean_logprob": text.mean_logprob}
