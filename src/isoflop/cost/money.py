"""Device hours, dollars and energy of a training run."""

import msgspec

from isoflop.cost.goodput import Goodput, goodput
from isoflop.cost.quantity import LEVEL, Quantity
from isoflop.hardware import Accelerator
from isoflop.hardware.prices import Range, listed_prices, watts

JOULES_A_KWH = 3.6e6


class Bill(msgspec.Struct, frozen=True):
    """Of a run of `tokens` tokens. `hours` by the clock and `device_hours`, with failures and checkpoints; `usd` and
    `price` None where no price is known, `kwh` where no power is."""

    tokens: float
    hours: Quantity
    device_hours: Quantity
    goodput: Goodput
    price: Range | None
    usd: Quantity | None
    kwh: Quantity | None


def training_bill(
    rate: Quantity, devices: int, tokens: float, hardware: Accelerator, price: Range | None = None
) -> Bill:
    """From the tokens a second and device of a training estimate. Without a price, the listed one of the hardware."""
    if not tokens > 0:
        raise ValueError(f"tokens = {tokens:g} must be above 0")
    share = goodput(devices)
    seconds = rate.inverse(tokens / devices)
    hours = _joined(seconds, share.share.value, share.share.low, share.share.high)
    device_hours = hours.times(devices)
    price = price or listed_prices().get(hardware.name)
    power = watts(hardware)
    return Bill(
        tokens=tokens,
        hours=hours,
        device_hours=device_hours,
        goodput=share,
        price=price,
        usd=None if price is None else priced(device_hours, price),
        kwh=None if power is None else priced(device_hours, power).times(1e-3),
    )


def _joined(seconds: Quantity, share: float, worst: float, best: float) -> Quantity:
    """Hours by the clock."""
    low, high = seconds.low / best / 3600, seconds.high / worst / 3600
    return Quantity(seconds.value / share / 3600, low, high, LEVEL, "assumed")


def priced(amount: Quantity, each: Range) -> Quantity:
    """An amount at so much each: bounds multiply, which makes them cautious."""
    return Quantity(amount.value * each.mid, amount.low * each.low, amount.high * each.high, None, "assumed")
