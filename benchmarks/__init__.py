"""Measurements of the numbers that the design promises; `python -m benchmarks`."""
