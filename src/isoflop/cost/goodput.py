"""How much of a long run's time trains: failures, restarts, and the checkpoints that bound what a failure undoes.

Young (1974) gives the interval between checkpoints, sqrt(2 C M) for a checkpoint of C seconds and M seconds between
failures; Daly (2006, "A higher order estimate of the optimum checkpoint interval", eq. 20 and 37) the expected time of
a run with restarts, which also holds where M is not large.
"""

import math

import msgspec

from isoflop.cost.quantity import Quantity
from isoflop.hardware.prices import Range

# Device hours between failures that stop a run. Low: OPT-175B's logbook, about two a day on 992 A100; high: Llama 3,
# 419 unexpected interruptions in 54 days on 16384 H100 (arXiv 2407.21783, table 5), twice over for clusters run since.
DEVICE_HOURS_BETWEEN_FAILURES = Range(12_000, 50_000, 100_000, "2024-07", "OPT-175B logbook; Llama 3, arXiv 2407.21783")
CHECKPOINT_S = Range(10, 60, 180, "2024-07", "assumed: sharded, to a parallel file system")
RESTART_S = Range(180, 600, 1800, "2024-07", "assumed: detection, a spare node, loading")


class Goodput(msgspec.Struct, frozen=True):
    """`share` of the time that trains; seconds between failures of the whole and between checkpoints."""

    share: Quantity
    between_failures_s: Quantity
    checkpoint_every_s: float


def goodput(
    devices: int,
    device_hours: Range = DEVICE_HOURS_BETWEEN_FAILURES,
    checkpoint_s: Range = CHECKPOINT_S,
    restart_s: Range = RESTART_S,
) -> Goodput:
    """Of a run on so many devices, with checkpoints at the interval that is best for the middle values."""
    between = [hours * 3600 / devices for hours in (device_hours.low, device_hours.mid, device_hours.high)]
    every = checkpoint_interval(checkpoint_s.mid, between[1])
    low = training_share(every, checkpoint_s.high, restart_s.high, between[0])
    mid = training_share(every, checkpoint_s.mid, restart_s.mid, between[1])
    high = training_share(every, checkpoint_s.low, restart_s.low, between[2])
    failures = Quantity(between[1], between[0], between[2], None, "assumed")
    return Goodput(Quantity(mid, low, high, None, "assumed"), failures, every)


def checkpoint_interval(checkpoint_s: float, between_failures_s: float) -> float:
    """Seconds of training between checkpoints that lose least: Daly's eq. 37, Young's where a checkpoint is short."""
    c, m = checkpoint_s, between_failures_s
    if c >= 2 * m:
        return m
    root = math.sqrt(c / (2 * m))
    return math.sqrt(2 * c * m) * (1 + root / 3 + root**2 / 9) - c


def training_share(every_s: float, checkpoint_s: float, restart_s: float, between_failures_s: float) -> float:
    """Share of the time that trains (Daly 2006, eq. 20): exponential failures, also during checkpoints and restarts."""
    m = between_failures_s
    return every_s / (m * math.exp(restart_s / m) * math.expm1((every_s + checkpoint_s) / m))
