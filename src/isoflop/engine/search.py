"""Spending more compute on one answer: many tries that share their prompt's cache, and which of them to believe.

best of n           the try of the highest score, by default its mean log probability a token
majority            the answer that most tries agree on (self-consistency: Wang et al. 2022, arXiv 2203.11171)
beam                the likeliest continuation, approximately: the k best unfinished ones go on from shared pages
budget forcing      a model that wants to stop thinking is made to go on, and one that thinks too long is made to stop
                    (s1: Muennighoff et al. 2025, arXiv 2501.19393, section 3)
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from isoflop.engine.draw import Logprobs
from isoflop.engine.engine import Engine
from isoflop.engine.offline import Text, write
from isoflop.engine.request import Request
from isoflop.engine.sampling import MOST_ALTERNATIVES, Sampling
from isoflop.engine.vocabulary import Vocabulary

MOST_ANSWER = 1000  # characters


class Vote(msgspec.Struct, frozen=True):
    """`answer` was that of `votes` of the `tries`; `text` is the likeliest try that says so."""

    answer: str
    votes: int
    tries: int
    text: Text


class Beam(msgspec.Struct, frozen=True):
    """A continuation and the natural log probability of all of it under the model. `ended`: with an end token."""

    tokens: tuple[int, ...]
    logprob: float
    ended: bool

    def score(self, length_penalty: float) -> float:
        """Log probability over length to a power (Wu et al. 2016, without their constants): 0 sums, 1 is the mean."""
        return self.logprob / float(max(1, len(self.tokens)) ** length_penalty)


def best_of(
    engine: Engine,
    vocabulary: Vocabulary,
    prompt: Sequence[int],
    sampling: Sampling,
    n: int,
    stops: Sequence[str] = (),
    score: Callable[[Text], float] | None = None,
) -> list[Text]:
    """n tries, best first by `score` (default: mean log probability a token). Raises ValueError."""
    told = msgspec.structs.replace(sampling, logprobs=sampling.logprobs or 0)
    tries = write(engine, vocabulary, [(prompt, told)] * n, stops)
    return sorted(tries, key=score or _likelihood, reverse=True)


def _likelihood(text: Text) -> float:
    return text.mean_logprob or 0.0


def majority(tries: Sequence[Text], answer: str) -> Vote:
    """The answer of most of the tries, best first as `best_of` gives them; ties go to the answer whose likeliest try is
    the likeliest. `answer` is an expression: what its first group matches last in a text is its answer (the whole match
    where there is no group). Raises ValueError where the expression is not valid or matches no try."""
    pattern = _pattern(answer)
    found = [(_answer(pattern, text.text), text) for text in tries]
    said = [(answer, text) for answer, text in found if answer is not None]
    if not said:
        raise ValueError(f"answer '{pattern.pattern}': matches none of the {len(tries)} texts")
    counts = Counter(answer for answer, _ in said)
    most, votes = counts.most_common(1)[0]  # the first of equals, in the order of the tries
    return Vote(most, votes, len(tries), next(text for answer, text in said if answer == most))


def _pattern(answer: str) -> "re.Pattern[str]":
    try:
        return re.compile(answer)
    except re.error as error:
        raise ValueError(f"answer '{answer}': is not a regular expression: {error}") from None


def _answer(pattern: "re.Pattern[str]", text: str) -> str | None:
    found = list(pattern.finditer(text))
    if not found:
        return None
    group = found[-1].group(1) if pattern.groups else found[-1].group()
    return None if group is None else group.strip()[:MOST_ANSWER]


def beam_search(
    engine: Engine,
    prompt: Sequence[int],
    width: int,
    max_tokens: int,
    end_tokens: Sequence[int] = (),
    length_penalty: float = 1.0,
) -> list[Beam]:
    """The `width` best continuations found, best first. Every step extends each beam by its 2 `width` likeliest
    tokens (as many may end); what a beam shares with any other is found in the engine's cache, so that a step computes
    at most a page of tokens a beam, and its states for recurrent layers. Stops once `width` have ended
    that no unfinished beam beats now. Raises ValueError where the width is not valid or a beam can never fit."""
    if not 1 <= width <= MOST_ALTERNATIVES // 2:
        raise ValueError(f"beam width {width}: must be from 1 to {MOST_ALTERNATIVES // 2}")
    live, ended = [Beam((), 0.0, False)], list[Beam]()
    for _ in range(max_tokens):
        told = _next(engine, prompt, live, 2 * width)
        grown = [more for beam, next in zip(live, told, strict=True) for more in _grow(beam, next, end_tokens)]
        grown.sort(key=lambda beam: beam.logprob, reverse=True)
        ended = _best([*ended, *(beam for beam in grown[: 2 * width] if beam.ended)], width, length_penalty)
        live = [beam for beam in grown if not beam.ended][:width]
        if not live or (len(ended) == width and live[0].score(length_penalty) < ended[-1].score(length_penalty)):
            break
    return _best([*ended, *live], width, length_penalty)


def _best(beams: list[Beam], n: int, length_penalty: float) -> list[Beam]:
    return sorted(beams, key=lambda beam: beam.score(length_penalty), reverse=True)[:n]


def _next(engine: Engine, prompt: Sequence[int], beams: Sequence[Beam], n: int) -> list[Logprobs]:
    """The n likeliest next tokens of each beam."""
    sampling = Sampling(temperature=0, max_tokens=1, logprobs=n, ignore_eos=True)
    for i, beam in enumerate(beams):
        engine.submit(Request(f"beam-{i}", (*prompt, *beam.tokens), sampling))
    told: dict[str, Logprobs] = {}
    while engine.has_work:
        for event in engine.step():
            if event.logprobs is not None:
                told[event.id] = event.logprobs
    return [told[f"beam-{i}"] for i in range(len(beams))]


def _grow(beam: Beam, told: Logprobs, end_tokens: Sequence[int]) -> list[Beam]:
    return [Beam((*beam.tokens, token), beam.logprob + value, token in end_tokens) for token, value in told.top]


class Budget(msgspec.Struct, frozen=True):
    """Of thinking: at least `least` tokens, at most `most`. Where the model would end its thinking before, `more` is
    put in its place, at most `times` times; where it has not ended by then, or has, `close` is what leads to the answer
    (a closing mark, "Final answer:"). Thinking ends with `end`, a stop string, or with the model's own end token."""

    least: int
    most: int
    more: str = "Wait"
    times: int = 8
    end: str | None = None
    close: str = "\nFinal answer:"

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most or self.most < 1:
            raise ValueError(f"budget of {self.least} to {self.most} tokens: must be 0 <= least <= most, and most >= 1")
        if self.times < 0:
            raise ValueError(f"times {self.times}: must not be negative")


class Thought(msgspec.Struct, frozen=True):
    """What was thought, in how many tokens, how often it was made to go on; and the answer after it."""

    thinking: str
    n_tokens: int
    forced: int
    answer: Text


def force_budget(
    engine: Engine,
    vocabulary: Vocabulary,
    prompt: Sequence[int],
    sampling: Sampling,
    budget: Budget,
    stops: Sequence[str] = (),
) -> Thought:
    """Think within a budget, then answer with `sampling`, up to one of `stops`. The cache of what was thought is used
    again at each turn. Raises ValueError where it can never fit."""
    tokens, thinking, n, forced = list(prompt), "", 0, 0
    ends = () if budget.end is None else (budget.end,)
    while n < budget.most:
        left = msgspec.structs.replace(sampling, max_tokens=budget.most - n, grammar=None)
        part = write(engine, vocabulary, [(tokens, left)], ends)[0]
        n += len(part.tokens)
        thinking += part.text
        kept = [token for token in part.tokens if vocabulary.pieces[token]]
        tokens += vocabulary.encode(part.text) if part.finish == "stop" and budget.end is not None else kept
        if part.finish == "length" or n >= budget.least or forced == budget.times:
            break
        forced += 1
        thinking += budget.more
        pushed = vocabulary.encode(budget.more)
        tokens += pushed
        n += len(pushed)
    tokens += vocabulary.encode(budget.close)
    return Thought(thinking, n, forced, write(engine, vocabulary, [(tokens, sampling)], stops)[0])
