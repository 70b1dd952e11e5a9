"""What a quantized model says beside the original, on held-out text. W window, T position, D document, R resample."""

from collections.abc import Callable
from typing import NamedTuple

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from isoflop.evaluate.position import MOST_LOGITS
from isoflop.evaluate.windows import Windows
from isoflop.model import DecoderModel

Floats = NDArray[np.float64]
RESAMPLES = 2000
Tell = Callable[[int, int], None]


class Reading(NamedTuple):
    """Nats of each target, and the token held likeliest in its place, [W, T]."""

    nats_WT: Floats
    top_WT: NDArray[np.int64]


class Interval(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mean over targets, and the middle 95 % of what other documents might have shown."""

    mean: float
    low: float
    high: float


@torch.no_grad()
def read(model: DecoderModel, windows: Windows, tell: Tell = lambda done, total: None) -> Reading:
    """Losses and likeliest tokens. Raises ValueError where a loss is no number."""
    tokens_WT = torch.from_numpy(windows.tokens)
    n_windows, context = tokens_WT.shape[0], tokens_WT.shape[1] - 1
    batch = max(1, MOST_LOGITS // (context * model.decoder.vocab_size))
    nats, top = np.empty((n_windows, context)), np.empty((n_windows, context), np.int64)
    model.eval()
    for first in range(0, n_windows, batch):
        part_WT = tokens_WT[first : first + batch]
        logits_WTV = model(part_WT[:, :-1])
        losses_N = F.cross_entropy(logits_WTV.flatten(0, 1), part_WT[:, 1:].flatten(), reduction="none")
        nats[first : first + batch] = losses_N.view(len(part_WT), -1).double().numpy()
        top[first : first + batch] = logits_WTV.argmax(-1).numpy()
        tell(min(first + batch, n_windows), n_windows)
    if not np.isfinite(nats).all():
        raise ValueError("a loss on held-out text is not finite")
    return Reading(nats, top)


def mean_over_documents(values_WT: Floats, documents_W: NDArray[np.int64], seed: int = 0) -> Interval:
    """The mean, and a bootstrap over documents, of which one's windows go together. Of one document nothing is known:
    its interval is everything."""
    mean = float(values_WT.mean())
    labels, place_W = np.unique(documents_W, return_inverse=True)
    if len(labels) < 2:
        return Interval(mean, -np.inf, np.inf)
    sums_D = np.bincount(place_W, values_WT.sum(1), len(labels))
    sizes_D = np.bincount(place_W, minlength=len(labels)) * values_WT.shape[1]
    drawn_RD = np.random.default_rng(seed).multinomial(len(labels), np.full(len(labels), 1 / len(labels)), RESAMPLES)
    low, high = np.quantile((drawn_RD @ sums_D) / (drawn_RD @ sizes_D), (0.025, 0.975))
    return Interval(mean, float(low), float(high))


def loss_change(original: Reading, other: Reading, windows: Windows) -> Interval:
    """Nats a token above the original's, target by target."""
    return mean_over_documents(other.nats_WT - original.nats_WT, windows.documents)


def agreement(original: Reading, other: Reading, windows: Windows) -> Interval:
    """Share of places where both hold the same token likeliest."""
    return mean_over_documents((other.top_WT == original.top_WT).astype(np.float64), windows.documents)
