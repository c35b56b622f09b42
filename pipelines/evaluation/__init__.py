"""Stage two of a pipeline: evaluation, comparison of feature sets, export."""
