"""Prompts in, texts out: the engine run to the end of a few requests by one who waits for all of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from isoflop.engine.engine import Engine, Options
from isoflop.engine.plan import plan_memory
from isoflop.engine.request import Event, Request
from isoflop.engine.sampling import SEEDS, Sampling
from isoflop.engine.store import NAMES
from isoflop.engine.text import TextStream
from isoflop.engine.vocabulary import Vocabulary
from isoflop.model import DecoderModel


@dataclass
class Text:
    """One output. `logprobs` where they were asked for, a number a token."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish: str = ""
    logprobs: list[float] = field(default_factory=list)

    @property
    def mean_logprob(self) -> float | None:
        """Nats a token."""
        return sum(self.logprobs) / len(self.logprobs) if self.logprobs else None


def begin(prompt: str, vocabulary: Vocabulary) -> list[int]:
    """The tokens of a prompt, at least one. Raises ValueError."""
    tokens = vocabulary.encode(prompt, whole=True)
    if tokens:
        return tokens
    if vocabulary.begin_token is None:
        raise ValueError("the prompt is empty, and the model has no token that begins a text")
    return [vocabulary.begin_token]


def write(
    engine: Engine,
    vocabulary: Vocabulary,
    asked: Sequence[tuple[Sequence[int], Sampling]],
    stops: Sequence[str] = (),
    show: Callable[[str], None] | None = None,
    start: bool = False,
) -> list[Text]:
    """The text of each prompt (given in tokens), all at once. The i-th that says a seed has that seed + i. `show` is
    given every piece of text as it stands. Raises ValueError where one can never fit."""
    texts, streams = [Text() for _ in asked], [TextStream(vocabulary, stops, start=start) for _ in asked]
    behind = _submit(engine, asked)
    while engine.has_work:
        for event in engine.step():
            i = int(event.id)
            for request in behind.pop(event.id, ()):
                engine.submit(request)
            if texts[i].finish:
                continue
            hidden = (*asked[i][1].stop_tokens, *(() if asked[i][1].ignore_eos else vocabulary.end_tokens))
            piece = _feed(texts[i], streams[i], event, hidden)
            if show is not None and piece:
                show(piece)
            if streams[i].stopped and event.finish is None:
                engine.cancel(event.id)
    return texts


def _submit(engine: Engine, asked: Sequence[tuple[Sequence[int], Sampling]]) -> dict[str, list[Request]]:
    """Submit the first of each prompt. Those behind it follow once its prompt is in the cache, to find it there."""
    leaders: dict[tuple[int, ...], str] = {}
    behind: dict[str, list[Request]] = {}
    for i, (prompt, sampling) in enumerate(asked):
        seed = None if sampling.seed is None else (sampling.seed + i) % SEEDS
        request = Request(str(i), tuple(prompt), msgspec.structs.replace(sampling, seed=seed))
        leader = leaders.setdefault(request.prompt, request.id)
        if leader == request.id:
            engine.submit(request)
        else:
            behind.setdefault(leader, []).append(request)
    return behind


def _feed(text: Text, stream: TextStream, event: Event, hidden: Sequence[int]) -> str:
    piece = ""
    if event.token is not None:
        text.tokens.append(event.token)
        if event.logprobs is not None:
            text.logprobs.append(event.logprobs.token)
        if not (event.finish == "stop" and event.token in hidden):
            piece = stream.feed(event.token)
    if event.finish is not None:
        piece += stream.finish()
    text.finish = "stop" if stream.stopped else event.finish or ""
    text.text += piece
    return piece


def room_for(model: DecoderModel, n_tokens: int, n: int, dtype: str | None) -> int:
    """Bytes of cache that `n` sequences of so many tokens need at most. Raises ValueError where the model's context is
    shorter."""
    if n_tokens > model.decoder.max_context:
        raise ValueError(
            f"prompt and output of {n_tokens} tokens exceed the model's context of {model.decoder.max_context}"
        )
    page_tokens, own = Options().page_tokens, NAMES[model.dtype]
    plan = plan_memory(model.decoder, 1 << 60, page_tokens, 2 * n, n_tokens, dtype, own, n_tokens)
    pages = sum(group.pages(n_tokens, n_tokens, page_tokens) * group.page_bytes for group in plan.groups)
    slots = 2 * n * plan.slot_bytes
    return max((n + 1) * pages + slots, 2 * slots) + (1 << 16)
