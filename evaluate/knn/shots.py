"""Random draws of a few images of each class."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import Labelled


def draw(train: Labelled, shots: int | str, *, seed: int) -> Labelled:
    """Draw a number of rows of each class, or a fraction of them, at least one; all rows of smaller classes.

    Examples
    --------
    >>> train = Labelled(split="train", rows=np.arange(6), labels=np.array([0, 0, 0, 0, 1, 1]))
    >>> draw(train, "50%", seed=0).labels.tolist(), draw(train, 3, seed=0).labels.tolist()
    ([0, 0, 1], [0, 0, 0, 1, 1])
    """
    number, fraction = parse_shots(shots)
    if seed < 0:
        raise EvaluationError(f"seed must not be negative; got {seed}")
    random = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(train.labels):
        places = np.flatnonzero(train.labels == label)
        count = number or max(1, round(fraction * len(places)))
        chosen.append(random.permutation(places)[:count])
    places = np.sort(np.concatenate(chosen))
    return replace(train, rows=train.rows[places], labels=train.labels[places])


def parse_shots(shots: int | str) -> tuple[int, float]:
    """Parse a number of images (n, 0), or a fraction of them (0, fraction).

    Raises
    ------
    ValueError
        If the value is neither.

    Examples
    --------
    >>> parse_shots(5), parse_shots("10%")
    ((5, 0.0), (0, 0.1))
    """
    if isinstance(shots, int) and shots > 0:
        return shots, 0.0
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", str(shots))
    if not match or not 0 < float(match[1]) <= 100:
        raise ValueError(f"images of each class must be a positive number, or a part such as 10%; got {shots!r}")
    return 0, float(match[1]) / 100
