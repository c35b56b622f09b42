"""Commands that a report names: what keeps the neighbours that it is made of, and what writes it again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from featbench.store import FeatureSet


def evaluate_command(
    features: FeatureSet,
    *,
    layers: Sequence[str],
    protocols: Sequence[str],
    ks: Sequence[int] = (),
    temperatures: Sequence[float] = (),
    leave_one_out: bool = False,
) -> str:
    """Write the `bench evaluate` that keeps neighbours of some layers.

    Protocols are named even if they are the default, which a bench.yaml in the working folder may change.
    """
    words = ["bench", "evaluate", "--features", features.name, *_store_words(features)]
    words += ["--layers", ",".join(dict.fromkeys(layers))]
    words += ["--protocol", ",".join(dict.fromkeys(protocols))]
    words += ["--k", ",".join(map(str, ks))] * bool(ks)
    words += ["--temperature", ",".join(f"{each:g}" for each in temperatures)] * bool(temperatures)
    words += ["--leave-one-out"] * leave_one_out
    return shlex.join(words)


def report_command(features: FeatureSet) -> str:
    """Write the `bench report` of one feature set."""
    return shlex.join(["bench", "report", features.name, *_store_words(features)])


def _store_words(features: FeatureSet) -> list[str]:
    """Words that say where a feature set is; none for the default store."""
    return [] if features.path.parent == Path("features") else ["--store", str(features.path.parent)]
