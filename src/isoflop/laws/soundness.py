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
WILD = 0.2  # residual of log loss that no noise and no bend of a law explains
MISFIT = 0.05  # residual rms at which the form cannot be said to fit
WIDEST_GAP = 300.0  # ratio of neighbouring N (or D) beyond which units are suspected
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
    clustered: bool = False,
    wrong: tuple[str, ...] = (),
    doubts: tuple[str, ...] = (),
) -> Soundness:
    """Judge a fit. `vanished` names those of A, B, alpha and beta that are zero, `capped` says which are at their
    upper bound; `wrong` are the mistakes that the table's reader found. Rows that are there twice are evidence counted
    twice, unless they are known to be of one cluster."""
    hopeless, doubtful = design_doubts(n, d, levels)
    twice = duplicates(n, d, loss)
    below = int((loss < floor).sum())
    refused = [
        f"{', '.join(vanished)} at zero: the law has no compute optimum" if vanished else None,
        f"the floor E = {floor:.4g} lies above {below} measured losses" if below else None,
        *hopeless,
        *gaps(n, d),
        None if clustered else twice,
        *wrong,
    ]
    weak = [
        f"{len(n)} rows for {parameters} parameters" if len(n) < ROWS_PER_PARAMETER * parameters else None,
        *doubtful,
        f"condition number {condition:.1e}" if condition is not None and condition > ILL_CONDITIONED else None,
        f"only {share:.0%} of the starts reached the optimum" if share < FEW_STARTS else None,
        twice if clustered else None,
        *capped,
        *doubts,
    ]
    return verdict([one for one in refused if one], [one for one in weak if one])


def design_doubts(n: Array, d: Array, levels: int) -> tuple[list[str], list[str]]:
    """Why these N and D, which vary, can tell no law whatever the losses; and what is only doubtful about them."""
    hopeless = ["one level of compute: how loss falls with compute is not seen"] if levels == 1 else []
    correlation = abs(float(np.corrcoef(np.log(n), np.log(d))[0, 1]))
    if correlation > INDISTINCT:
        told = f"log N and log D move together (correlation {correlation:.4f}): their terms cannot be told apart"
        return [*hopeless, told], []
    near = [f"log N and log D are nearly collinear (correlation {correlation:.3f})"] if correlation > COLLINEAR else []
    return hopeless, near


def gaps(n: Array, d: Array) -> list[str]:
    """Sentences where a column falls into parts so far apart that they may be of different units."""
    told = []
    for name, column in (("N", np.sort(n)), ("D", np.sort(d))):
        ratio = np.append(column[1:] / column[:-1], 1.0)
        k = int(ratio.argmax())
        if ratio[k] > WIDEST_GAP:
            told.append(
                f"{name} jumps from {column[k]:.4g} to {column[k + 1]:.4g} with no run between: rows of another unit?"
            )
    return told


def wild_row(n: Array, d: Array, residuals: Array) -> list[str]:
    """A sentence where a run is so far off the law (`residuals` of log loss) that its N, D or loss may mean another."""
    worst = int(np.abs(residuals).argmax())
    if abs(residuals[worst]) < WILD:
        return []
    return [
        f"the run at N = {n[worst]:.4g}, D = {d[worst]:.4g} is {np.exp(residuals[worst]):.3g} times what the law says: "
        "another unit in its row, or a run that went wrong"
    ]


def misfit(rms: float) -> list[str]:
    """A sentence where residuals of log loss are too large for the form to be the table's."""
    return [f"residuals of {rms:.1%}: the form does not fit this table"] if rms > MISFIT else []


def verdict(hopeless: list[str], doubtful: list[str]) -> Soundness:
    """The status that reasons amount to."""
    status: Status = "refused" if hopeless else "weak" if doubtful else "sound"
    return Soundness(status=status, reasons=hopeless + doubtful)


def table_notes(n: Array, d: Array, loss: Array) -> list[str]:
    """What is doubtful about a table whatever is fitted to it."""
    told = mistakes(n, d, loss)
    if min(np.ptp(np.log(n)), np.ptp(np.log(d))) > 0:
        correlation = abs(float(np.corrcoef(np.log(n), np.log(d))[0, 1]))
        if correlation > COLLINEAR:
            told.append(f"log N and log D move together (correlation {correlation:.3f}): what each does is a guess")
    return told


def mistakes(n: Array, d: Array, loss: Array) -> list[str]:
    """What looks like a mistake in the table itself, which no prior about laws makes good."""
    told = [duplicates(n, d, loss), *gaps(n, d)]
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
