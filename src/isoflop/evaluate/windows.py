"""Held-out windows that lie inside one document each, so that every position has all the context it says it has."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isoflop.data.dataset import Dataset

AnyTokens = NDArray[np.integer[Any]]


class Windows(NamedTuple):
    """`tokens` [n_windows, context + 1]; `documents` [n_windows], which document each was cut from."""

    tokens: NDArray[np.int64]
    documents: NDArray[np.int64]


class Places(NamedTuple):
    """Where windows lie: `tokens` [n_windows, context + 1] are places of tokens; `documents` as in `Windows`."""

    tokens: NDArray[np.int64]
    documents: NDArray[np.int64]

    def windows(self, tokens: AnyTokens) -> Windows:
        """The windows in `tokens` [n]."""
        return Windows(tokens[self.tokens].astype(np.int64), self.documents)


def held_out(dataset: Dataset, context: int, most_tokens: int) -> Places:
    """Windows in the validation split of a dataset, as `document_windows`. Raises ValueError."""
    return document_windows(dataset.valid_ends, len(dataset.valid), context, most_tokens)


def document_windows(separators: NDArray[np.int64], n_tokens: int, context: int, most_tokens: int) -> Places:
    """Windows of context + 1 tokens cut one after the other from each document of `n_tokens`, where `separators`
    [n_documents] are the places of the tokens that end one; of more than `most_tokens` targets, windows spread evenly.
    Raises ValueError where no document is long enough."""
    starts, ends = _documents(separators, n_tokens)
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
    return Places(cut, documents[chosen])


def _documents(separators: NDArray[np.int64], n_tokens: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First token of each document and the place of its end; what follows the last separator is one too."""
    ends = np.append(separators, n_tokens)
    starts = np.concatenate([[0], ends[:-1] + 1])
    return starts.astype(np.int64), ends.astype(np.int64)
