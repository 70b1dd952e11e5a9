"""How a request's tokens are chosen: what it may say. The choosing itself is isoflop.engine.draw.

The order is Transformers': grammar, penalties, temperature, top-k, top-p, min-p, and then the draw.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from torch import Tensor

MOST_ALTERNATIVES = 64  # log probabilities of other tokens beside each token
SEEDS = 2**64


class JsonSchema(msgspec.Struct, frozen=True, tag="json-schema", forbid_unknown_fields=True):
    """The text is a JSON value that obeys `schema`, itself a JSON document. `whitespace`: blanks between its parts are
    allowed."""

    schema: str
    whitespace: bool = False


class Regex(msgspec.Struct, frozen=True, tag="regex", forbid_unknown_fields=True):
    """The whole text matches `pattern` (no look-around, no back-references)."""

    pattern: str


Grammar = JsonSchema | Regex


class Guide(Protocol):
    """A grammar being followed by one sequence; made by `isoflop.engine.grammar`."""

    def allowed(self) -> Tensor:
        """[V] bool: the tokens that may come next, an end token among them where the text may end here."""

    def accept(self, token: int) -> None:
        """Move on by a token of the sequence, which is to be an allowed one."""

    def rollback(self, n: int) -> None:
        """Undo the last `n` accepted tokens."""

    @property
    def finished(self) -> bool:
        """Whether nothing more can follow: the sequence ends here, end token or not."""


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One request's choices. Raises ValueError, naming the field, where they are not valid.

    temperature          0 is greedy (the lowest of equally likely tokens); else logits are divided by it
    top_k                0 for all, else only the k likeliest (and those exactly as likely as the last of them)
    top_p                the fewest likeliest tokens with at least this probability (Holtzman et al. 2020)
    min_p                only tokens at least this times as likely as the likeliest (Nguyen et al. 2024)
    repetition_penalty   of tokens in prompt or output: positive logits are divided, others multiplied by it
                         (Keskar et al. 2019; Transformers)
    presence_penalty     taken off the logit of each token in the output (OpenAI)
    frequency_penalty    taken off the logit for each time that it is in the output (OpenAI)
    logit_bias           (token, what is added to its logit), after penalties, before the grammar (OpenAI)
    seed                 of the draws; a draw depends on the seed and the token's place in the sequence alone
    logprobs             how many alternatives are told beside each token's log probability; None: tell nothing.
                         They are the model's own, before penalties, temperature and grammar
    prompt_logprobs      the same of the prompt's tokens, all but the first; nothing of that prompt is then looked up in
                         the cache
    grammar              what the output must match
    max_tokens           the most tokens of output; 0 only where the prompt's log probabilities are asked for
    stop_tokens          tokens that end the output beside the model's own; they are part of the output
    ignore_eos           the model's own end tokens do not end the output
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None
    max_tokens: int = 256
    stop_tokens: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for name, (valid, words) in _VALID.items():
            value = getattr(self, name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} {value}: must be a finite number")
            if value is not None and not valid(value):
                raise ValueError(f"{name} {value}: must be {words}")
        if self.max_tokens == 0 and self.prompt_logprobs is None:
            raise ValueError("max_tokens 0: must be 1 or more; 0 only with prompt_logprobs")
        wrong = next((bias for token, bias in self.logit_bias if token < 0 or not -100 <= bias <= 100), None)
        if wrong is not None:
            raise ValueError(f"logit_bias {wrong}: must be from -100 to 100, of tokens 0 or more")
        negative = next((token for token in self.stop_tokens if token < 0), None)
        if negative is not None:
            raise ValueError(f"stop_tokens {negative}: tokens are 0 or more")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature == 0 or self.top_k == 1

    @property
    def penalized(self) -> bool:
        """Whether the logits are changed before anything is chosen."""
        return (
            bool(self.logit_bias)
            or self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
        )


_VALID: dict[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": (lambda x: 0 <= x <= 100, "from 0 to 100"),
    "top_k": (lambda k: k >= 0, "0 (all) or more"),
    "top_p": (lambda p: 0 < p <= 1, "above 0 and at most 1"),
    "min_p": (lambda p: 0 <= p <= 1, "from 0 to 1"),
    "repetition_penalty": (lambda r: 0 < r <= 100, "above 0 and at most 100"),
    "presence_penalty": (lambda x: -100 <= x <= 100, "from -100 to 100"),
    "frequency_penalty": (lambda x: -100 <= x <= 100, "from -100 to 100"),
    "seed": (lambda s: 0 <= s < SEEDS, "a whole number from 0 to 2^64 - 1"),
    "logprobs": (lambda n: 0 <= n <= MOST_ALTERNATIVES, f"from 0 to {MOST_ALTERNATIVES}"),
    "prompt_logprobs": (lambda n: 0 <= n <= MOST_ALTERNATIVES, f"from 0 to {MOST_ALTERNATIVES}"),
    "max_tokens": (lambda n: n >= 0, "1 or more"),
}
