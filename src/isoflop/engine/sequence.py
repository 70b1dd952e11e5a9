"""One request under way: its tokens, how many of them the caches know, and what it holds."""

from array import array
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from isoflop.engine.blocks import Digest, chained
from isoflop.engine.draw import Logprobs, Row
from isoflop.engine.request import Request

NOTHING = -1  # in a table: a page that was given back, out of reach


@dataclass(eq=False, slots=True)
class Sequence:
    """`tokens`: prompt and output; `n_computed`: how many the caches know; `tables`: pages by group, in order of the
    tokens they hold; `slot`: of its recurrent states; `digests`: names of its whole blocks, as far as they were needed;
    `salt`: what else keys depend on; `snapshot`: the name of the states last kept of its output; `branch`: how many
    tokens it has in common with one before it; `drafts`: guesses that it brings to the next steps, and `odds`, which
    they were drawn from (speculate.Proposal); `judged` and `accepted`: how many were so far; `drafted_for`: whether it
    is guessed for; `guessed_out`: all guesses were right, and one more token is said before there are new ones;
    `scores`: log probabilities of its prompt's tokens from the second on, as far as they are known (None: not asked);
    `arrival`: its place in the line, kept when it is preempted; `told`: an event of it was given out."""

    request: Request
    arrival: int
    row: Row
    tokens: list[int]
    limit: int
    salt: Digest
    turns: tuple[Any, ...] = ()
    n_computed: int = 0
    n_cached: int = 0
    tables: list["array[int]"] = field(default_factory=list)
    slot: int | None = None
    digests: list[Digest] = field(default_factory=list)
    snapshot: Digest | None = None
    branch: int = 0
    drafts: list[int] = field(default_factory=list)
    odds: Tensor | None = None
    judged: int = 0
    accepted: int = 0
    drafted_for: bool = False
    guessed_out: bool = False
    told: bool = False
    scores: list[Logprobs] | None = None
    n_preempted: int = 0

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def unguessed(self) -> bool:
        """Whether guesses are to be made before more is said: never of the first token of the output."""
        decoding = len(self.tokens) > self.row.n_prompt
        return self.drafted_for and decoding and not self.drafts and not self.guessed_out

    @property
    def unscored(self) -> bool:
        """Whether tokens of its prompt are still to be scored."""
        return self.scores is not None and len(self.scores) < self.row.n_prompt - 1

    @property
    def n_findable(self) -> int:
        """How many of its first tokens may be found in the caches: not the last, none that is to be scored or comes
        after one, and one less where guesses are to be made."""
        most = len(self.tokens) - 1 - self.unguessed
        return min(most, len(self.scores)) if self.scores is not None and self.unscored else most

    def says(self, n: int) -> bool:
        """Whether a token of output follows its next n tokens."""
        return n == self.n_pending and len(self.tokens) < self.limit

    @property
    def n_pending(self) -> int:
        """Tokens that the caches do not know yet."""
        return len(self.tokens) - self.n_computed

    def digest(self, block: int, page_tokens: int) -> Digest:
        """The name of a whole block of its tokens."""
        while len(self.digests) <= block:
            at = len(self.digests) * page_tokens
            before = self.digests[-1] if self.digests else self.salt
            self.digests.append(chained(before, self.tokens[at : at + page_tokens]))
        return self.digests[block]
