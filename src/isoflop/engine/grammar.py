"""Output that must match a JSON schema or a regular expression: llguidance says which tokens may come next.

llguidance because it is one wheel without dependencies and is built against hostile grammars: expressions are matched
by derivatives and never backtrack, schemas are fetched from nowhere, and work per step, items and states are bounded.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from isoflop.engine.sampling import Grammar, Guide, JsonSchema, Regex
from isoflop.engine.vocabulary import Vocabulary

MOST_GRAMMAR = 1 << 16  # bytes of a schema or an expression
MOST_STATES = 50_000  # of the lexer
MATCHES_NOTHING = "NoExtensionBias"  # as llguidance says it
MOST_KEPT = 32  # grammars that are not made anew for the next request


class Grammars:
    """The grammars of one vocabulary; `guide` may be called by any thread, and is quick for a grammar that it has seen:
    a server lets another thread than the engine's ask first. Raises ValueError where llguidance is not installed."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        try:
            import llguidance
        except ImportError:
            raise ValueError("a grammar needs the package llguidance: pip install 'isoflop[serve]'") from None
        self._library = llguidance
        self._n_tokens = len(vocabulary.pieces)
        self._ends = vocabulary.end_tokens or (self._n_tokens,)  # without any, one that nobody can draw
        tokenizer = llguidance.TokenizerWrapper(_Tokens(vocabulary, self._ends))
        self._tokenizer = llguidance.LLTokenizer(tokenizer, eos_token=list(self._ends))
        self._kept: OrderedDict[Grammar, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._limits = llguidance.LLParserLimits(max_lexer_states=MOST_STATES, verbose_errors=False)

    def guide(self, grammar: Grammar) -> Guide:
        """A guide at the start of a text. Raises ValueError where the grammar is not valid, too large, or matches
        nothing."""
        with self._lock:
            made = self._kept.pop(grammar, None)
        if made is None:
            made = self._made(grammar)
        with self._lock:
            self._kept[grammar] = made
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
            return _Matcher(made.deep_copy(), self._n_tokens, self._ends)

    def _made(self, grammar: Grammar) -> Any:
        made = self._library.LLMatcher(self._tokenizer, self._source(grammar), log_level=0, limits=self._limits)
        if not made.is_error():
            made.compute_bitmask()  # finds what matches nothing at all
        if made.is_error():
            raise ValueError(f"{_name(grammar)}: {_first_line(made.get_error())}")
        return made

    def _source(self, grammar: Grammar) -> str:
        text = grammar.schema if isinstance(grammar, JsonSchema) else grammar.pattern
        if len(text.encode(errors="replace")) > MOST_GRAMMAR:
            raise ValueError(f"{_name(grammar)}: over {MOST_GRAMMAR} bytes")
        matcher = self._library.LLMatcher
        try:
            if isinstance(grammar, Regex):
                return str(matcher.grammar_from_regex(grammar.pattern))
            blanks: Any = {"whitespace_flexible": grammar.whitespace}
            return str(matcher.grammar_from_json_schema(grammar.schema, overrides=blanks))
        except ValueError as error:
            raise ValueError(f"{_name(grammar)}: {_first_line(str(error))}") from None


class LazyGrammars:
    """Grammars that cost nothing until one is asked for."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary, self._lock = vocabulary, threading.Lock()
        self._grammars: Grammars | None = None

    def guide(self, grammar: Grammar) -> Guide:
        """See Grammars.guide."""
        with self._lock:
            self._grammars = self._grammars or Grammars(self._vocabulary)
        return self._grammars.guide(grammar)


class _Matcher:
    """sampling.Guide of one sequence."""

    def __init__(self, matcher: Any, n_tokens: int, ends: Sequence[int]) -> None:
        self._matcher, self._n_tokens = matcher, n_tokens
        self._ends = [token for token in ends if token < n_tokens]
        self._moved: list[bool] = []

    def allowed(self) -> Tensor:
        """[V] bool. Where no token may come, those that end the text (or token 0: such a sequence is `finished`)."""
        packed = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        bits = (packed[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
        allowed_V = bits.flatten()[: self._n_tokens].bool()
        if not bool(allowed_V.any()):
            allowed_V[self._ends or [0]] = True
        return allowed_V

    def accept(self, token: int) -> None:
        """Move on; an end token, and anything after the text's end, changes nothing."""
        self._moved.append(not self._matcher.is_stopped() and bool(self._matcher.consume_token(token)))

    def rollback(self, n: int) -> None:
        """Undo accepted tokens."""
        kept = len(self._moved) - n
        self._matcher.rollback(sum(self._moved[kept:]))
        del self._moved[kept:]

    @property
    def finished(self) -> bool:
        """Nothing can follow, or the grammar's bounds on work were reached."""
        return bool(self._matcher.is_stopped() or self._matcher.is_error())


class _Tokens:
    """What llguidance asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, ends: tuple[int, ...]) -> None:
        self._vocabulary = vocabulary
        self.eos_token_id = ends[0]
        extra = [b""] if ends[0] == len(vocabulary.pieces) else []
        self.tokens = [*vocabulary.pieces, *extra]
        self.special_token_ids = [token for token, piece in enumerate(self.tokens) if not piece]

    def __call__(self, text: bytes) -> list[int]:
        return self._vocabulary.encode(text.decode(errors="replace"))


def _name(grammar: Grammar) -> str:
    return "json schema" if isinstance(grammar, JsonSchema) else "regular expression"


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = next((line for line in lines if line.startswith("error:")), lines[0] if lines else "not valid")
    told = told.removeprefix("error:").strip()[:300]
    return "matches nothing" if told == MATCHES_NOTHING else told
