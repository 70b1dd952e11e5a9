"""Failures and checkpoints beside a simulation; prices; bills."""

import random

import pytest

from isoflop.cost.goodput import checkpoint_interval, goodput, training_share
from isoflop.cost.money import training_bill
from isoflop.cost.quantity import Quantity
from isoflop.hardware import find_accelerator
from isoflop.hardware.prices import Range, listed_prices, read_price, watts

RATE = Quantity(1000, 900, 1100, 0.8, "fitted")


def _simulated(every: float, checkpoint: float, restart: float, between: float, work: float) -> float:
    """Seconds to train `work` seconds when failures come at random, also in checkpoints and restarts."""
    source, clock, done = random.Random(0), 0.0, 0.0
    failure = source.expovariate(1 / between)
    while done < work:
        need = every + checkpoint
        while failure < clock + need:
            clock = failure
            failure = clock + source.expovariate(1 / between)
            while failure < clock + restart:
                clock = failure
                failure = clock + source.expovariate(1 / between)
            clock += restart
        clock, done = clock + need, done + every
    return clock


@pytest.mark.parametrize("between", [600.0, 3600.0, 36000.0])
def test_daly_beside_a_simulation(between: float) -> None:
    every = checkpoint_interval(30, between)
    share = training_share(every, 30, 120, between)
    work = 20_000 * every
    assert share == pytest.approx(work / _simulated(every, 30, 120, between, work), rel=0.02)


@pytest.mark.parametrize("between", [600.0, 3600.0, 36000.0, 1e6])
def test_the_interval_is_the_best(between: float) -> None:
    every = checkpoint_interval(30, between)
    share = training_share(every, 30, 120, between)
    assert all(training_share(f * every, 30, 120, between) < share + 1e-4 for f in (0.5, 0.8, 1.25, 2))


def test_llama_3() -> None:
    """Over 90 % effective training time on 16384 devices (arXiv 2407.21783, section 3.3.4)."""
    found = goodput(16384)
    assert found.share.low < 0.9 < found.share.high and 0.85 < found.share.value < 0.97


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2.5", "price '2.5' has no date: prices move, so say when, as in '2.5@2026-01'"),
        ("x@2026", "price 'x@2026': 'x' is no number"),
        ("1,2@2026", "price '1,2@2026' has 2 values; one, or low, middle and high"),
        ("3,2,1@2026", "3, 2, 1 must be low, middle and high"),
        ("2@soon", "date 'soon' must be a year, month or day"),
    ],
)
def test_prices_that_are_none(text: str, message: str) -> None:
    with pytest.raises(ValueError) as mistake:
        read_price(text)
    assert str(mistake.value).startswith(message)


def test_prices() -> None:
    assert read_price("1.9,2.4,3.1@2026-06") == Range(1.9, 2.4, 3.1, "2026-06", "given")
    assert read_price("2@2026-06").high == 2
    for name, price in listed_prices().items():
        assert find_accelerator(name).name == name and price.source and price.low < price.mid < price.high


def test_a_bill() -> None:
    hardware = find_accelerator("H100-SXM")
    bill = training_bill(RATE, 100, 3.6e9, hardware, Range(2, 2, 2, "2026-01", "given"))
    perfect = 3.6e9 / 1000 / 3600
    assert bill.device_hours.value == pytest.approx(perfect / bill.goodput.share.value)
    assert bill.hours.value == pytest.approx(bill.device_hours.value / 100)
    assert bill.usd is not None and bill.usd.value == pytest.approx(2 * bill.device_hours.value)
    assert bill.usd.low < bill.usd.value < bill.usd.high
    assert bill.kwh is not None and bill.kwh.value == pytest.approx(0.84 * bill.device_hours.value)
    unpriced = training_bill(RATE, 100, 1e9, find_accelerator("TPU v4"))
    assert unpriced.usd is None and unpriced.kwh is None and watts(find_accelerator("TPU v4")) is None
    with pytest.raises(ValueError, match="tokens = 0 must be above 0"):
        training_bill(RATE, 1, 0, hardware)
