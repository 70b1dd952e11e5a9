"""A minute of measurements on the device at hand. Imports torch."""

from isoflop.calibrate.device import calibrate

__all__ = ["calibrate"]
