"""Losses of a model at every position of held-out windows. W window, T position, V vocabulary."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from isoflop.model import DecoderModel

MOST_LOGITS = 2**24  # logits held at once: 64 MiB in fp32

Tell = Callable[[int, int], None]  # tokens read so far, and in all


def silent(done: int, total: int) -> None:
    """Tell nobody."""


def losses_by_position(model: DecoderModel, tokens_WT: NDArray[np.int64], tell: Tell = silent) -> NDArray[np.float64]:
    """Nats of each target, [W, T], of windows of T + 1 tokens. Read in pieces that continue a cache, so that memory is
    linear in T and the logits of a piece are never more than 64 MiB."""
    n_windows, context = tokens_WT.shape[0], tokens_WT.shape[1] - 1
    batch, piece = _pieces(n_windows, context, model.decoder.vocab_size)
    losses: NDArray[np.float64] = np.empty((n_windows, context))
    model.eval()
    for first in range(0, n_windows, batch):
        tokens = torch.from_numpy(tokens_WT[first : first + batch])
        for start, nats in _prefill(model, tokens, piece):
            losses[first : first + batch, start : start + nats.shape[1]] = nats.numpy()
        tell(min(first + batch, n_windows) * context, n_windows * context)
    return losses


def losses_in_own_context(
    model: DecoderModel, tokens_WT: NDArray[np.int64], own: int, tell: Tell = silent
) -> NDArray[np.float64]:
    """As `losses_by_position`, but the model never sees more than `own` tokens: windows of that length that move on by
    half of it, each read for its second half. What a model does beyond its context where nothing is extended."""
    n_windows, context = tokens_WT.shape[0], tokens_WT.shape[1] - 1
    step = max(1, own // 2)
    losses = losses_by_position(model, tokens_WT[:, : min(own, context) + 1])
    for end in range(own + step, context + step, step):
        last = min(end, context)
        first = last - own
        new = last - losses.shape[1]
        more = losses_by_position(model, tokens_WT[:, first : last + 1])[:, -new:]
        losses = np.concatenate([losses, more], axis=1)
        tell(n_windows * last, n_windows * context)
    return losses


def _pieces(n_windows: int, context: int, vocab_size: int) -> tuple[int, int]:
    """Windows at a time, and tokens of each at a time."""
    rows = max(1, MOST_LOGITS // vocab_size)
    return (min(n_windows, rows // context), context) if rows >= context else (1, rows)


def _prefill(model: DecoderModel, tokens_WT: Tensor, piece: int) -> Iterator[tuple[int, Tensor]]:
    """The first position of each piece and its losses, [W, piece]."""
    n_windows, context = tokens_WT.shape[0], tokens_WT.shape[1] - 1
    state = model.new_state(n_windows, context) if piece < context else None
    for start in range(0, context, piece):
        end = min(start + piece, context)
        with torch.no_grad():
            logits_WTV = model(tokens_WT[:, start:end], state)
            nats_N = F.cross_entropy(
                logits_WTV.flatten(0, 1), tokens_WT[:, start + 1 : end + 1].flatten(), reduction="none"
            )
        yield start, nats_N.view(n_windows, -1).double()
