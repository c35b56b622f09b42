"""The error of everything that has to do with weights."""

from featbench.store import BenchError


class WeightsError(BenchError):
    """Weights can't be read, or don't fit the model."""
