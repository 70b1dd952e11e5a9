"""Loss against position as data: buckets of positions, with standard errors over documents. numpy alone.

W window, T position.
"""

import math
from itertools import pairwise
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

BUCKETS_AN_OCTAVE = 3


class Mean(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Mean loss of positions `first` to `last`, counted from 1: a token at position p is predicted from p tokens.
    `nats_se`: standard error over documents; `difference`: nats above the curve's reference on the same windows, whose
    error is much smaller than that of either."""

    first: int
    last: int
    nats: float
    nats_se: float
    bits_per_byte: float
    difference: float
    difference_se: float


Kind = Literal["untouched", "own-context", "scaled", "tuned", "beside"]


class Curve(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model. `border`: its trained context. `inside`: positions up to the extended model's old context; `beyond`:
    the later ones."""

    name: str
    kind: Kind
    digest: str
    border: int
    buckets: list[Mean]
    inside: Mean
    beyond: Mean


class Tuning(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the fine-tuning was; `losses`: training nats per token after so many steps."""

    method: str
    steps: int
    batch: int
    tokens: int
    lr: float
    seed: int
    seconds: float
    losses: list[tuple[int, float]]


class LossByPosition(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """position.json. `reference` names the curve that differences are from."""

    format: Literal[1] = 1
    model: str
    command: list[str]
    written: str  # the method of the model that was written
    border: int
    context: int
    data: str
    data_digest: str
    n_windows: int
    n_documents: int
    reference: str
    curves: list[Curve]
    tuning: Tuning | None
    environment: dict[str, str]


def bucket_edges(context: int, border: int) -> list[int]:
    """First positions of the buckets, and context + 1: three an octave, one of them just beyond the border. No bucket
    before the border is shorter than a position."""
    inner = {round(2 ** (i / BUCKETS_AN_OCTAVE)) for i in range(BUCKETS_AN_OCTAVE * int(math.log2(border)) + 1)}
    n_outer = max(1, round(BUCKETS_AN_OCTAVE * math.log2(context / border)))
    outer = {round(border * (context / border) ** (i / n_outer)) for i in range(n_outer + 1)}
    return sorted({1} | {last + 1 for last in inner | outer | {border} if last < context} | {context + 1})


class Sample:
    """What all curves share: which windows of which documents, and the bytes that their targets stand for."""

    def __init__(self, documents: NDArray[np.int64], bytes_WT: NDArray[np.integer[Any]], border: int) -> None:
        self.documents, self.bytes_WT, self.border = documents, bytes_WT, border
        self.context = bytes_WT.shape[1]

    def curve(self, name: str, kind: Kind, digest: str, border: int, nats_WT: Array, reference_WT: Array) -> Curve:
        """The curve of losses in nats a target, [W, T]."""
        edges = bucket_edges(self.context, self.border)
        spans = [(first, after - 1) for first, after in pairwise(edges)]
        return Curve(
            name=name,
            kind=kind,
            digest=digest,
            border=border,
            buckets=[self.mean(nats_WT, reference_WT, first, last) for first, last in spans],
            inside=self.mean(nats_WT, reference_WT, 1, self.border),
            beyond=self.mean(nats_WT, reference_WT, self.border + 1, self.context),
        )

    def mean(self, nats_WT: Array, reference_WT: Array, first: int, last: int) -> Mean:
        """Mean over all windows of the positions from `first` to `last`."""
        span = slice(first - 1, last)
        nats, nats_se = clustered(nats_WT[:, span].mean(1), self.documents)
        difference, difference_se = clustered((nats_WT - reference_WT)[:, span].mean(1), self.documents)
        n_bytes = max(1, int(self.bytes_WT[:, span].sum()))
        return Mean(
            first=first,
            last=last,
            nats=nats,
            nats_se=nats_se,
            bits_per_byte=float(nats_WT[:, span].sum()) / math.log(2) / n_bytes,
            difference=difference,
            difference_se=difference_se,
        )


def clustered(values_W: Array, clusters_W: NDArray[np.int64]) -> tuple[float, float]:
    """Mean, and its standard error where values of one cluster may go together (windows of one document do): from the
    sums of deviations by cluster (Liang and Zeger 1986). Of a single cluster nothing is known: infinity."""
    mean = float(values_W.mean())
    labels, place = np.unique(clusters_W, return_inverse=True)
    if len(labels) < 2:
        return mean, math.inf
    sums = np.bincount(place, values_W - mean, len(labels))
    correction = len(labels) / (len(labels) - 1)
    return mean, float(np.sqrt(correction * (sums**2).sum())) / len(values_W)
