"""Whether a law may be relied on: sound, weak (use it with --force and your eyes open), or refused.

A table that cannot tell the terms apart still gives numbers, and to six digits. The status says so in a word that
downstream verbs can act on; the reasons say it in sentences.
"""

from typing import Literal

import msgspec
import numpy as np

from isoflop.laws.forms import Array

Status = Literal["sound", "weak", "refused"]

COLLINEAR, INDISTINCT = 0.98, 0.999  # |correlation| of log N and log D: doubtful, and hopeless
ROWS_PER_PARAMETER = 2
ILL_CONDITIONED = 1e4
FEW_STARTS = 0.2  # share at the best optimum below which it may not be the best
FLOPS_SPREAD = 1.25  # ratio of the extreme FLOPs / (6 N D) of one table that two conventions are suspected from
FLOPS_FACTOR = 2.0  # a constant factor that no count of embeddings, attention or recomputation explains


class Soundness(msgspec.Struct, frozen=True, kw_only=True):
    """The status, and what speaks against the law."""

    status: Status
    reasons: list[str]


def soundness(
    n: Array,
    d: Array,
    loss: Array,
    *,
    floor: float,
    vanished: list[str],
    capped: list[str],
    parameters: int,
    condition: float | None,
    share: float,
    levels: int,
    doubts: tuple[str, ...] = (),
) -> Soundness:
    """Judge a fit. `vanished` names those of A, B, alpha and beta that are zero, `capped` says which are at their
    upper bound; `doubts` are the table reader's."""
    correlation = abs(float(np.corrcoef(np.log(n), np.log(d))[0, 1]))
    refused = [
        f"{', '.join(vanished)} at zero: the law has no compute optimum" if vanished else None,
        "one level of compute: how loss falls with compute is not seen" if levels == 1 else None,
        f"log N and log D move together (correlation {correlation:.4f}): their terms cannot be told apart"
        if correlation > INDISTINCT
        else None,
    ]
    below = int((loss < floor).sum())
    weak = [
        f"{len(n)} rows for {parameters} parameters" if len(n) < ROWS_PER_PARAMETER * parameters else None,
        f"the floor E = {floor:.4g} lies above {below} measured losses" if below else None,
        f"log N and log D are nearly collinear (correlation {correlation:.3f})"
        if COLLINEAR < correlation <= INDISTINCT
        else None,
        f"condition number {condition:.1e}" if condition is not None and condition > ILL_CONDITIONED else None,
        f"only {share:.0%} of the starts reached the optimum" if share < FEW_STARTS else None,
        duplicates(n, d, loss),
        *capped,
        *doubts,
    ]
    return verdict([one for one in refused if one], [one for one in weak if one])


def verdict(hopeless: list[str], doubtful: list[str]) -> Soundness:
    """The status that reasons amount to."""
    status: Status = "refused" if hopeless else "weak" if doubtful else "sound"
    return Soundness(status=status, reasons=hopeless + doubtful)


def table_notes(n: Array, d: Array, loss: Array) -> list[str]:
    """What is doubtful about a table whatever is fitted to it."""
    told = [duplicates(n, d, loss)]
    if min(np.ptp(np.log(n)), np.ptp(np.log(d))) > 0:
        correlation = abs(float(np.corrcoef(np.log(n), np.log(d))[0, 1]))
        if correlation > COLLINEAR:
            told.append(f"log N and log D move together (correlation {correlation:.3f}): what each does is a guess")
    return [one for one in told if one]


def duplicates(*columns: Array) -> str | None:
    """A sentence where rows are there twice, loss and all: seeds never repeat a loss to the last digit."""
    rows = np.stack(columns)
    spare = rows.shape[1] - np.unique(rows, axis=1).shape[1]
    if not spare:
        return None
    return (
        f"{spare} of {rows.shape[1]} rows are exact duplicates, and counted as evidence: "
        "leave them out, or label them with --cluster"
    )


def flops_doubts(n: Array, d: Array, flops: Array, name: str) -> tuple[str, ...]:
    """Whether a FLOP column and 6 N D are of one convention."""
    ratio = flops / (6 * n * d)
    low, high, middle = float(ratio.min()), float(ratio.max()), float(np.median(ratio))
    if high / low > FLOPS_SPREAD:
        row = int(np.abs(np.log(ratio / middle)).argmax()) + 1
        return (
            f"column '{name}' is {low:.3g} to {high:.3g} times 6 N D (furthest from the median {middle:.3g} in used "
            f"row {row}): N, D and FLOPs are not of one convention",
        )
    if not 1 / FLOPS_FACTOR < middle < FLOPS_FACTOR:
        return (f"column '{name}' is {middle:.3g} times 6 N D in every row: N, D or FLOPs have another unit",)
    return ()
