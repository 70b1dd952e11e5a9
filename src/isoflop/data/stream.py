"""Tokens as training windows in a shuffled order, where window i is a pure function of (tokens, context, seed, i).

Nothing is remembered between batches: a run resumes by asking for the next window's number, and the same windows come
whatever the batch size. Each epoch visits every window once, in an order of its own.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from isoflop.data.permutation import permute

Batch = tuple[NDArray[np.int64], NDArray[np.int64]]  # inputs and targets, each [batch, context]
AnyTokens = NDArray[np.integer[Any]]


class BatchStream:
    """Windows of context + 1 tokens that start every `context` tokens; a last, partial one is dropped.

    Each token is so a target at most once an epoch. Raises ValueError where `tokens` [n] do not fill one window.
    """

    def __init__(self, tokens: AnyTokens, context: int, seed: int) -> None:
        self.context = context
        self.seed = seed
        self._n_tokens = len(tokens)
        self._windows = _windows(tokens, context)
        self.windows_per_epoch = len(self._windows)

    def batch(self, first_window: int, n: int) -> Batch:
        """Windows `first_window` to `first_window + n - 1`, counted from the start of training across epochs."""
        return _inputs_and_targets(self._windows[self._order(first_window, n)])

    def unique_tokens(self, n_windows: int) -> int:
        """How many distinct positions of the text were targets after the first `n_windows` windows."""
        return min(n_windows, self.windows_per_epoch) * self.context

    def require(self, batch: int) -> None:
        """Raises ValueError where the text does not fill one batch of `batch` windows."""
        if self.windows_per_epoch < batch:
            raise ValueError(
                f"the text holds {self._n_tokens} tokens, {self.windows_per_epoch} windows of {self.context}; one "
                f"batch needs {batch} windows, {batch * self.context + 1} tokens: give more text or a smaller batch"
            )

    def _order(self, first_window: int, n: int) -> NDArray[np.int64]:
        assert first_window >= 0
        assert n >= 0
        parts = []
        while n > 0:
            epoch, start = divmod(first_window, self.windows_per_epoch)
            count = min(n, self.windows_per_epoch - start)
            places = np.arange(start, start + count, dtype=np.int64)
            parts.append(permute(places, self.windows_per_epoch, self.seed, epoch))
            first_window, n = first_window + count, n - count
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def evaluation_batches(tokens: AnyTokens, context: int, batch: int, max_tokens: int | None = None) -> Iterator[Batch]:
    """The same windows for every model with this context, spread evenly over `tokens` [n] and not overlapping.

    At most `max_tokens` targets (all where None); the last batch may hold fewer than `batch` windows.
    """
    assert batch > 0
    windows = _windows(tokens, context)
    chosen = _evaluation_windows(len(windows), context, max_tokens)
    for start in range(0, len(chosen), batch):
        yield _inputs_and_targets(windows[chosen[start : start + batch]])


def evaluation_bytes(sizes: NDArray[np.unsignedinteger[Any]], context: int, max_tokens: int | None) -> int:
    """The bytes of text that the targets of `evaluation_batches` stand for, the denominator of bits per byte, where
    `sizes` [n] are those of each token."""
    return sum(int(targets.sum()) for _, targets in evaluation_batches(sizes, context, 256, max_tokens))


def bits_per_byte(nats_sum: float, n_bytes: int) -> float:
    """Bits spent a byte of text. `nats_sum` is over every predicted token, ends of documents included."""
    if n_bytes <= 0:
        raise ValueError(f"bits per byte over {n_bytes} bytes of text; at least 1 is needed")
    return nats_sum / math.log(2) / n_bytes


def _windows(tokens: AnyTokens, context: int) -> AnyTokens:
    """[n_windows, context + 1], a view."""
    if context < 1:
        raise ValueError(f"context: {context} is not positive; a window holds at least 1 token and its target")
    if len(tokens) < context + 1:
        raise ValueError(
            f"the text holds {len(tokens)} tokens, one window of context {context} needs {context + 1}: "
            "give more text or a shorter context"
        )
    return sliding_window_view(tokens, context + 1)[::context]


def _evaluation_windows(n_windows: int, context: int, max_tokens: int | None) -> NDArray[np.int64]:
    count = n_windows if max_tokens is None else min(n_windows, max_tokens // context)
    if count < 1:
        raise ValueError(f"max_tokens: {max_tokens} is less than one window of context {context}; give at least that")
    return np.arange(count, dtype=np.int64) * n_windows // count


def _inputs_and_targets(windows: AnyTokens) -> Batch:
    tokens = windows.astype(np.int64)
    return tokens[:, :-1], tokens[:, 1:]
