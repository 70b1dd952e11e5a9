"""Tokens to text as they come: whole characters only, and nothing that a stop string may still take back."""

import codecs
from collections.abc import Sequence

from isoflop.engine.vocabulary import Vocabulary

MOST_STOPS = 16
LONGEST_STOP = 1024  # characters


class Detokenizer:
    """Text of tokens one after the other; half a character waits for its other half, what can never become one is
    U+FFFD. `start`: the text begins here, so that a space which the vocabulary puts before it is dropped."""

    def __init__(self, vocabulary: Vocabulary, start: bool = False) -> None:
        self._pieces = vocabulary.pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._drops_space = start and vocabulary.strips_space

    def feed(self, token: int) -> str:
        """The text that the token makes certain."""
        return self._without_space(self._decoder.decode(self._pieces[token]))

    def finish(self) -> str:
        """What is left of a text that ends here: U+FFFD for half a character."""
        return self._without_space(self._decoder.decode(b"", final=True))

    def _without_space(self, text: str) -> str:
        if self._drops_space and text:
            self._drops_space = False
            return text.removeprefix(" ")
        return text


def check_stops(stops: Sequence[str]) -> tuple[str, ...]:
    """Raises ValueError where one is empty or too long. How many a request may bring (MOST_STOPS) is seen where it
    comes in: a template adds its own."""
    for stop in stops:
        if not 0 < len(stop) <= LONGEST_STOP:
            said = "is empty" if not stop else f"has {len(stop)} characters"
            raise ValueError(f"stop: a string {said}; it must have 1 to {LONGEST_STOP} characters")
    return tuple(stops)


class Stops:
    """Text up to the first stop string, wherever the borders of tokens lie; of strings that are found with the same
    character, the one that began first ends the text. `include`: the string itself is part of the text."""

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._stops, self._include = check_stops(stops), include
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.found: str | None = None

    def feed(self, text: str) -> str:
        """The text that is certain now; once `found` says which string ended it, nothing more comes."""
        if self.found is not None:
            return ""
        self._held += text
        if not self._stops:
            return self._release(len(self._held))
        hits = [(at + len(stop), at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if hits:
            end, at, self.found = min(hits)
            given, self._held = self._held[: end if self._include else at], ""
            return given
        return self._release(len(self._held) - self._may_begin())

    def finish(self) -> str:
        """What was held back of a text that ends without a stop string."""
        return self._release(len(self._held))

    def _release(self, n: int) -> str:
        given, self._held = self._held[:n], self._held[n:]
        return given

    def _may_begin(self) -> int:
        """How many of the last characters may be the first of a stop string."""
        most = min(self._longest - 1, len(self._held))
        ends = (self._held[-n:] for n in range(most, 0, -1))
        return next((len(end) for end in ends if any(stop.startswith(end) for stop in self._stops)), 0)


class TextStream:
    """Both: `feed` tokens, get text that stands; `stopped` once a stop string ended it. `n_characters`: of all tokens
    so far, held back and cut off ones among them."""

    def __init__(
        self, vocabulary: Vocabulary, stops: Sequence[str] = (), include: bool = False, start: bool = False
    ) -> None:
        self._detokenizer = Detokenizer(vocabulary, start)
        self._stops = Stops(stops, include)
        self.n_characters = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text."""
        return self._stops.found is not None

    @property
    def stop(self) -> str | None:
        """The string that did."""
        return self._stops.found

    def feed(self, token: int) -> str:
        """The text that is certain with this token."""
        return self._stops.feed(self.echo(token))

    def echo(self, token: int) -> str:
        """The same of a token before the output, in which no stop string is looked for."""
        text = self._detokenizer.feed(token)
        self.n_characters += len(text)
        return text

    def finish(self) -> str:
        """The rest, where no more tokens come."""
        return self._stops.feed(self._detokenizer.finish()) + self._stops.finish()
