"""What public tables of runs teach about a law before its own runs are seen.

A `Prior` holds the hyperparameters of `isoflop.laws.discrepancy`. Its beliefs about exponents and floor are wide and
customary; how tables stray from a law, and how far intervals must be stretched to hold, `benchmarks/backtest.py` learnt
by forecasting the dear runs of public tables from the cheap ones. What it reports of a table comes from a prior learnt
without any table of the same source. docs/decisions.md has the figures.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Belief:
    """A normal distribution."""

    mean: float
    sd: float


@dataclass(frozen=True)
class Prior:
    """Beliefs about the anchored law (see `isoflop.laws.anchored.Anchored`), and about how far tables stray from it.

    Lengths are in decades. The discrepancy's sizes are in units of the noise of a run, which the table itself tells.
    """

    floor: Belief  # logit of the share of the irreducible loss in the anchor's loss
    split: Belief  # logit of the share of the N term in the anchor's reducible loss
    alpha: Belief  # log of the exponent of N
    beta: Belief  # log of the exponent of D
    gamma: Belief  # log of the power that joins the two terms; 0: they add, as in Hoffmann et al. 2022
    noise: float  # of log loss: what the noise of a run is taken for before residuals are seen
    noise_rows: float  # how many rows that guess is worth
    ratio_length: float  # over which discrepancy changes along D/N
    stretch: float  # of standard deviations, so that intervals held as often as they said
    discrepancies: tuple[float, ...] = (1.5, 7.0)  # sizes of the smooth discrepancy that are averaged over
    lengths: tuple[float, ...] = (0.8, 2.0)  # over which it changes along compute, averaged over
    offsets: tuple[float, ...] = (0.0, 2.0)  # sizes of the offset that runs of one N share, averaged over
    levels: tuple[float, ...] = (0.0, 0.7)  # sizes of the offset that runs of one compute share, averaged over


PUBLIC = Prior(
    floor=Belief(0.0, 0.5),
    split=Belief(0.0, 1.0),
    alpha=Belief(-0.92, 0.4),
    beta=Belief(-0.92, 0.4),
    gamma=Belief(0.0, 0.3),
    noise=0.004,
    noise_rows=10.0,
    ratio_length=0.7,
    stretch=0.9,
)
