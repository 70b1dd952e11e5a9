"""From the engine's events to the text and log probabilities of each choice."""

from dataclasses import dataclass, field
from typing import NamedTuple

from isoflop.engine.draw import Logprobs
from isoflop.engine.request import Event
from isoflop.engine.server.jobs import Job
from isoflop.engine.server.protocol import ChatLogprobs, ChosenLogprob, CompletionLogprobs, TokenLogprob, Usage
from isoflop.engine.text import TextStream
from isoflop.engine.vocabulary import Vocabulary


class Told(NamedTuple):
    """A token with its log probabilities (None: it follows nothing), and where in the text it begins."""

    token: int
    logprobs: Logprobs | None
    offset: int


class Piece(NamedTuple):
    """More of a choice: text that stands, and the tokens since the last piece. `finish`: it is the last."""

    choice: int
    text: str
    told: tuple[Told, ...]
    finish: str | None
    stop: str | None


@dataclass
class Choice:
    """One choice as it is written. `scores`: log probabilities of its prompt's tokens from the second on, shared by all
    choices with that prompt, the first of which to be heard of brings them."""

    index: int
    job: Job
    stream: TextStream
    scores: list[Logprobs]
    begun: bool = False
    n_tokens: int = 0
    n_cached: int = 0
    total_logprob: float = 0.0
    waiting: list[Told] = field(default_factory=list)
    finish: str | None = None

    def feed(self, event: Event) -> Piece | None:
        """What the event adds; None where no text is certain yet."""
        self.n_cached += event.cached
        text = "" if self.begun else self._begin(event)
        if event.token is not None:
            self.n_tokens += 1
            if event.logprobs is not None:
                self.waiting.append(Told(event.token, event.logprobs, self.stream.n_characters))
                self.total_logprob += event.logprobs.token
            if not (event.finish == "stop" and event.token in self.job.hidden):
                text += self.stream.feed(event.token)
        if self.stream.stopped:
            self.finish = "stop"
        elif event.finish is not None:
            self.finish = event.finish
            text += self.stream.finish()
            self.finish = "stop" if self.stream.stopped else self.finish
        if not text and self.finish is None:
            return None
        told, self.waiting = tuple(self.waiting), []
        return Piece(self.index, text, told, self.finish, self.stream.stop)

    def _begin(self, event: Event) -> str:
        """The text of the prompt, where it is echoed."""
        self.begun = True
        self.scores[:] = self.scores or event.scores
        if not self.job.echo:
            return ""
        prompt, text = self.job.request.prompt, []
        told: list[Logprobs | None] = [None, *self.scores] if self.scores else [None] * len(prompt)
        for token, logprobs in zip(prompt, told, strict=True):
            self.waiting.append(Told(token, logprobs, self.stream.n_characters))
            text.append(self.stream.echo(token))
        return "".join(text)

    @property
    def mean_logprob(self) -> float:
        """Natural log probability a token."""
        return self.total_logprob / max(1, self.n_tokens)


def start(jobs: list[Job], vocabulary: Vocabulary) -> dict[str, Choice]:
    """A choice a job, by the request's id."""
    scores: dict[tuple[int, ...], list[Logprobs]] = {job.request.prompt: [] for job in jobs}
    return {
        job.request.id: Choice(
            i, job, TextStream(vocabulary, job.stops, job.include_stop, job.start), scores[job.request.prompt]
        )
        for i, job in enumerate(jobs)
    }


def usage(choices: list[Choice], n_prompts: int) -> Usage:
    """Of all choices together; a prompt counts once."""
    each = len(choices) // n_prompts
    prompt = sum(len(choice.job.request.prompt) for choice in choices[::each])
    output = sum(choice.n_tokens for choice in choices)
    cached = sum(choice.n_cached for choice in choices[::each])
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=output,
        total_tokens=prompt + output,
        prompt_tokens_details=Usage.Details(cached_tokens=cached),
    )


def completion_logprobs(told: tuple[Told, ...], vocabulary: Vocabulary) -> CompletionLogprobs:
    """As /v1/completions has them."""
    return CompletionLogprobs(
        tokens=[name(entry.token, vocabulary) for entry in told],
        token_logprobs=[None if entry.logprobs is None else entry.logprobs.token for entry in told],
        top_logprobs=[_by_name(entry.token, entry.logprobs, vocabulary) for entry in told],
        text_offset=[entry.offset for entry in told],
    )


def _by_name(own: int, logprobs: Logprobs | None, vocabulary: Vocabulary) -> dict[str, float] | None:
    """The likeliest, and the token itself; of several with one name, the likeliest comes first and stays."""
    if logprobs is None:
        return None
    named: dict[str, float] = {}
    for token, value in (*logprobs.top, (own, logprobs.token)):
        named.setdefault(name(token, vocabulary), value)
    return named


def chat_logprobs(told: tuple[Told, ...], vocabulary: Vocabulary) -> ChatLogprobs:
    """As /v1/chat/completions has them."""
    return ChatLogprobs(
        content=[
            ChosenLogprob(
                **_one(entry.token, entry.logprobs.token, vocabulary).model_dump(),
                top_logprobs=[_one(token, value, vocabulary) for token, value in entry.logprobs.top],
            )
            for entry in told
            if entry.logprobs is not None
        ]
    )


def _one(token: int, value: float, vocabulary: Vocabulary) -> TokenLogprob:
    return TokenLogprob(token=name(token, vocabulary), logprob=value, bytes=list(vocabulary.pieces[token]))


def name(token: int, vocabulary: Vocabulary) -> str:
    """A token for people to read: its text; `bytes:\\xNN` for half a character, as OpenAI has it; a mark's own name."""
    piece = vocabulary.pieces[token]
    try:
        return piece.decode() if piece else vocabulary.names.get(token, f"<{token}>")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
