"""Evaluations that are recorded in the feature sets of a store: reading, choosing, and other projects' formats."""
