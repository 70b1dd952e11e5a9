"""What is asked of the engine, and what it answers."""

import msgspec

from isoflop.engine.draw import Logprobs
from isoflop.engine.sampling import Sampling


class Request(msgspec.Struct, frozen=True):
    """`id`: the caller's name for it, unlike that of any other request under way; `prompt`: at least one token."""

    id: str
    prompt: tuple[int, ...]
    sampling: Sampling = Sampling()


class Event(msgspec.Struct, frozen=True):
    """One more token of a request, or its end, or both. `finish`: "stop" (an end token, a grammar's end), "length"
    (max_tokens), "cancelled", or None where more will come. Of the first event of a request: `cached`, how many tokens
    of its prompt were found in the cache; `scores`, what Sampling.prompt_logprobs asked for, from the second token
    on."""

    id: str
    token: int | None = None
    logprobs: Logprobs | None = None
    finish: str | None = None
    cached: int = 0
    scores: tuple[Logprobs, ...] = ()
