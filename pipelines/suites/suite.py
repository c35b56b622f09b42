"""A suite: a pipeline and a matrix, one ordinary run for each combination, each with a feature set of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featbench.pipelines.config.pipeline import NAME_PATTERN, Pipeline, PipelineError
from featbench.pipelines.suites.checkpoints import label
from featbench.pipelines.suites.matrix import Axis, Value, axes_of, combinations
from featbench.store.documents import brief_text

MOST_FAULTS = 10
"""Faults of members that one message lists."""

LONGEST = 180
"""Characters of a feature set's name; file systems allow 255 bytes, and temporary names add some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One run of a suite."""

    title: str
    """Name of its feature set, and the settings of stage two that vary."""

    pipeline: Pipeline


def members_of(
    matrix: Mapping[str, Any], load: Callable[[Mapping[str, Any]], Pipeline], *, taken: Mapping[str, Any]
) -> list[Member]:
    """Make the members of a suite.

    Parameters
    ----------
    matrix : mapping
        See `featbench.pipelines.suites.matrix.axes_of`.
    load : callable
        Makes a pipeline of the suite's own settings and those of a member, by dotted key.
    taken : mapping
        Settings of the command line, which the matrix must not have, too.

    Raises
    ------
    PipelineError
        If the matrix or a member has faults, all of which are listed, or two members would have one name.
    """
    axes = axes_of(matrix)
    _refuse_taken(axes, taken)
    members, faults = [], dict[str, None]()
    for values in combinations(axes):
        try:
            members.append(_member(values, load))
        except PipelineError as error:
            faults.setdefault(str(error))
    if faults:
        shown = list(faults)[:MOST_FAULTS]
        more = [f"... ({len(faults)} in all)"] if len(faults) > len(shown) else []
        raise PipelineError("\n".join([*shown, *more]))
    _refuse_twins(members)
    return members


def name_of(base: str, values: Sequence[Value]) -> str:
    """Name of a member's feature set: the pipeline's name and the labels of what varies, but for stage two."""
    return name_after(base, *(value.label for value in values if value.is_named))


def name_after(base: str, *labels: str) -> str:
    """Join a name and labels; what is too long is cut, and ends in a digest.

    Examples
    --------
    >>> name_after("small", "epoch9", "photos")
    'small-epoch9-photos'
    """
    name = "-".join([base, *labels])
    return name if len(name) <= LONGEST else label(name)


def _member(values: Sequence[Value], load: Callable[[Mapping[str, Any]], Pipeline]) -> Member:
    settings: dict[str, Any] = {}
    for value in values:
        settings |= value.settings
    pipeline = load(settings)
    name = name_of(pipeline.name, values)
    assert re.fullmatch(NAME_PATTERN, name)
    of_stage_two = [f"{key}={each}" for v in values if not v.is_named for key, each in v.settings.items()]
    title = name + (f" ({', '.join(of_stage_two)})" if of_stage_two else "")
    return Member(title=title, pipeline=pipeline.model_copy(update={"name": name}))


def _refuse_taken(axes: Sequence[Axis], taken: Mapping[str, Any]) -> None:
    for axis in axes:
        for key in dict.fromkeys(key for value in axis.values for key in value.settings):
            if any(_overlap(key, each) for each in taken):
                raise PipelineError(
                    f"{brief_text(key)} is set by the matrix ({brief_text(axis.name)}) and by the command line; leave "
                    f"one out, or replace the axis: --matrix {brief_text(axis.name)}=..."
                )


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _refuse_twins(members: Sequence[Member]) -> None:
    seen: dict[tuple[str, Path], Member] = {}
    for member in members:
        twin = seen.setdefault((member.title, member.pipeline.store), member)
        if twin is not member:
            raise PipelineError(
                f"two members of the suite would be called {brief_text(member.title)}. Name the values in a file: "
                f"matrix: {{weights: {{first: a.pth, second: b.pth}}}}"
            )
