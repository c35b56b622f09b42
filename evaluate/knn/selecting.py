"""Choosing layer, protocol, k and temperature on train alone, so that val is asked once."""

from __future__ import annotations

from collections.abc import Sequence

from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.results import KnnResult, Result, SelectionResult


def select(on_train: Sequence[Result], on_val: Sequence[Result]) -> SelectionResult:
    """Choose the setting with the highest top-1 on train, the first of equals, and look it up among those of val.

    Parameters
    ----------
    on_train : sequence of Result
        Leave-one-out on train: each row classified by the others.
    on_val : sequence of Result
        The same settings on val.

    Raises
    ------
    EvaluationError
        If there is none, as where train or val has no labels.
    """
    trials = {_setting(each): each for each in on_train if isinstance(each, KnnResult)}
    answers = {_setting(each): each for each in on_val if isinstance(each, KnnResult)}
    common = [setting for setting in trials if setting in answers]
    if trials and answers and not common:
        raise EvaluationError(
            "--select: no k is possible both for val and for a row among the others of train: give a smaller --k"
        )
    if not common:
        raise EvaluationError(
            "--select needs labels in train and val: there is no accuracy to choose by. Import or extract labels with "
            "the features, or leave --select out"
        )
    best = max(common, key=lambda setting: trials[setting].top1)
    claimed = max(common, key=lambda setting: answers[setting].top1)
    return SelectionResult(
        chosen=trials[best], on_val=answers[best], best_on_val=answers[claimed], num_settings=len(common)
    )


def _setting(result: KnnResult) -> tuple[str, str, int, float | None]:
    return result.layer.layer, result.protocol, result.k, result.temperature
