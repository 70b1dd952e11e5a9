"""Kernels of our own: C++ that the machine's compiler builds on first use, and what runs where it cannot."""
