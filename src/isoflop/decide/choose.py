"""Which candidates to buy with a budget, so that the goals' variance falls most.

The variance that runs take away is close to submodular, and for such gains the better of two greedy choices, by gain
and by gain per cost, is within a constant of the best set (Leskovec et al. 2007, section 3). Exchanges then mend what
greed got wrong. Everything is deterministic: of equals the first, in the order of the candidates, is taken.
"""

from collections.abc import Sequence

import numpy as np

from isoflop.decide.outlook import Knowledge, Outlook
from isoflop.laws.forms import Array

LEAST_GAIN = 3e-3  # of what remains of the variance: a run that takes away less is not worth its trouble
BETTER = 1e-3  # by how much a swap must gain, so that rounding swaps nothing
EXCHANGES = 4  # rounds over the chosen runs
MOST_EXCHANGED = 40  # chosen runs beyond which exchanging would take long


def choose(
    outlook: Outlook, budget: float, most: int | None = None, enough: float = 0.0, least_gain: float = LEAST_GAIN
) -> list[int]:
    """Candidates to train, dearest gain first, their costs within `budget` and at most `most` of them.

    Once the goals' summed variance is down to `enough`, the cheaper set is the better one. A run that takes away less
    than `least_gain` of what remains is left out; with 0 the whole budget is spent, as far as it goes. Empty where
    nothing is affordable, or nothing tells anything of the goals.
    """
    limit = len(outlook.cost_c) if most is None else most
    sets = []
    for by_cost in (True, False):
        mended = exchange(outlook, greedy(outlook, budget, limit, by_cost, enough, least_gain), budget)
        # A cheaper swap may have left room.
        filled = greedy(outlook, budget, limit, by_cost, enough, least_gain, mended)
        sets.append(prune(outlook, filled, enough, least_gain))
    return in_order(outlook, min(sets, key=lambda chosen: _rank(outlook, chosen, enough)))


def greedy(
    outlook: Outlook,
    budget: float,
    most: int,
    by_cost: bool,
    enough: float,
    least_gain: float,
    start: Sequence[int] = (),
) -> list[int]:
    """Candidates added to `start` one by one: by what they tell, or by what they tell per cost, given those before."""
    known, left = Knowledge(outlook, start), budget - float(outlook.cost_c[list(start)].sum())
    variance = float(outlook.after(start).sum())
    while len(known.taken) < most and variance > enough:
        gains = np.where(outlook.cost_c <= left, known.gains(), 0.0)
        gains[gains < least_gain * variance] = 0
        if not gains.any():
            break
        best = int((gains / outlook.cost_c if by_cost else gains).argmax())
        variance -= float(gains[best])
        left -= float(outlook.cost_c[best])
        known.add(best)
    return known.taken


def exchange(outlook: Outlook, chosen: Sequence[int], budget: float) -> list[int]:
    """Swap each run for the affordable one that tells most beside the others, while that gains."""
    current = list(chosen)
    if len(current) > MOST_EXCHANGED:
        return current
    for _ in range(EXCHANGES):
        before = list(current)
        for place in range(len(current)):
            others = current[:place] + current[place + 1 :]
            known, left = Knowledge(outlook, others), budget - float(outlook.cost_c[others].sum())
            gains = np.where(outlook.cost_c <= left, known.gains(), 0.0)
            best = int(gains.argmax())
            if gains[best] > (1 + BETTER) * gains[current[place]]:
                current[place] = best
        if current == before:
            break
    return current


def prune(outlook: Outlook, chosen: Sequence[int], enough: float, least_gain: float) -> list[int]:
    """The same candidates without those that the others have made useless, the dearest of them first."""
    kept = list(chosen)
    for candidate in sorted(chosen, key=lambda k: -outlook.cost_c[k]):
        others = [k for k in kept if k != candidate]
        if outlook.after(others).sum() <= max(enough, (1 + least_gain) * outlook.after(kept).sum()):
            kept = others
    return kept


def in_order(outlook: Outlook, chosen: Sequence[int]) -> list[int]:
    """The same candidates, those first that tell most per cost given the ones before."""
    known = Knowledge(outlook)
    wanted = np.zeros(len(outlook.cost_c), dtype=bool)
    wanted[list(chosen)] = True
    while wanted.any():
        rates = np.where(wanted, known.gains() / outlook.cost_c, -1.0)
        known.add(int(rates.argmax()))
        wanted[known.taken[-1]] = False
    return known.taken


def widths(outlook: Outlook, chosen: Sequence[int]) -> Array:
    """Standard deviation of the first goal before any run and after each, shape (1 + chosen,)."""
    return np.sqrt([outlook.after(chosen[:count])[0] for count in range(len(chosen) + 1)])


def _rank(outlook: Outlook, chosen: Sequence[int], enough: float) -> tuple[float, float]:
    """Least variance first; of what differs by rounding, the cheaper."""
    cost = float(outlook.cost_c[list(chosen)].sum())
    return float(f"{max(enough, outlook.after(chosen).sum()):.6g}"), cost
