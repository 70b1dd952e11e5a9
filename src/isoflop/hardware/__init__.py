"""Accelerators and prices: dated facts of others, and the device at hand once measured. No torch."""

from isoflop.hardware.accelerator import GIB, Accelerator, accelerators, find_accelerator

__all__ = ["GIB", "Accelerator", "accelerators", "find_accelerator"]
