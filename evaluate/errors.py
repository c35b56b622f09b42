"""The error of an evaluation."""

from __future__ import annotations

from featbench.store import BenchError


class EvaluationError(BenchError, ValueError):
    """An evaluation is impossible as requested."""
