"""Held-out windows that lie inside one document each, so that every position has all the context it says it has."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isoflop.data.tokenizer import SEPARATOR

AnyTokens = NDArray[np.integer[Any]]


class Windows(NamedTuple):
    """`tokens` [n_windows, context + 1]; `documents` [n_windows], which document each was cut from."""

    tokens: NDArray[np.int64]
    documents: NDArray[np.int64]


def document_windows(tokens: AnyTokens, context: int, most_tokens: int) -> Windows:
    """Windows of context + 1 tokens cut one after the other from each document of `tokens` [n], where token 0 ends a
    document; of more than `most_tokens` targets, windows spread evenly. Raises ValueError where no document is long
    enough."""
    starts, ends = _documents(tokens)
    counts = (ends - starts) // (context + 1)
    if counts.sum() == 0:
        longest = int((ends - starts).max(initial=0))
        raise ValueError(
            f"no held-out document holds {context + 1} tokens: the longest has {longest}; "
            f"give longer documents or a context of at most {max(longest - 1, 0)}"
        )
    documents = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    first = starts[documents] + within * (context + 1)
    n = min(len(first), max(1, most_tokens // context))
    chosen = np.arange(n) * len(first) // n
    cut = first[chosen][:, None] + np.arange(context + 1)
    return Windows(tokens[cut].astype(np.int64), documents[chosen])


def _documents(tokens: AnyTokens) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First token of each document and the place of its end; what follows the last separator is one too."""
    ends = np.append(np.flatnonzero(tokens == SEPARATOR), len(tokens))
    starts = np.concatenate([[0], ends[:-1] + 1])
    return starts.astype(np.int64), ends.astype(np.int64)
