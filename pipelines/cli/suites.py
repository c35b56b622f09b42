"""Suites in `bench run`: several runs of one command, and one table at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from featbench.pipelines.cli import set_level
from featbench.pipelines.cli.display import Format, print_results
from featbench.pipelines.cli.options import is_named, read_pipeline
from featbench.pipelines.cli.running import evaluate_features, extract_features

if TYPE_CHECKING:
    from featbench.evaluate.results import Record
    from featbench.pipelines.config.pipeline import Pipeline
    from featbench.pipelines.suites.suite import Member

SOME_FAILED = 1
"""Exit code if some members of a suite failed."""


def weights_among(words: Sequence[str] | None, weights: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Tell further weights from the other arguments: a shell makes `--weights a.pth b.pth` of `--weights *.pth`."""
    from featbench.pipelines.suites.checkpoints import SUFFIXES

    words, files = list(words or []), list(weights or [])
    more = [word for word in words if files and word.lower().endswith(SUFFIXES) and Path(word).is_file()]
    return [word for word in words if word not in more], files + more


def matrix_of(words: Sequence[str], weights: Sequence[str], matrix: Sequence[str] | None) -> dict[str, Any]:
    """Gather what varies: the matrix of the file, if one is named, and what the command line replaces or adds."""
    from featbench.pipelines.suites.checkpoints import is_pattern
    from featbench.pipelines.suites.matrix import matrix_of_words

    found: dict[str, Any] = {}
    if is_named(words) and Path(words[0]).is_file():
        from featbench.pipelines.config.pipeline import read_matrix

        found |= read_matrix(Path(words[0]))
    found |= matrix_of_words(matrix or [])
    if len(weights) > 1 or (weights and ("weights" in found or is_pattern(weights[0]))):
        found["weights"] = list(weights)
    return found


def read_members(
    words: Sequence[str], settings: Mapping[str, Any], matrix: Mapping[str, Any], *, quiet: bool, may_run_code: bool
) -> list[Member]:
    """Read the pipelines of a suite.

    Raises
    ------
    PipelineError
        If any of them, or the matrix, has faults.
    """
    from featbench.pipelines.config.pipeline import parse_overrides
    from featbench.pipelines.foreign.words import sort_words
    from featbench.pipelines.suites.suite import members_of

    is_told = False

    def load(of_member: Mapping[str, Any]) -> Pipeline:
        nonlocal is_told
        said, is_told = is_told, True
        return read_pipeline(
            list(words), {**settings, **of_member}, quiet=quiet or said, may_run_code=may_run_code, is_member=True
        )

    others = sort_words(words[1:] if is_named(words) else words).others
    return members_of(matrix, load, taken={**settings, **parse_overrides(others)})


def run_suite(members: Sequence[Member], *, overwrite: bool, form: Format, quiet: bool) -> None:
    """Run the members, print one table of all results, and say which failed."""
    set_level(quiet)
    from featbench.pipelines.ranks import from_environment
    from featbench.pipelines.suites.running import failed, run_all

    outcomes = run_all(members, lambda pipeline: run_member(pipeline, overwrite=overwrite, quiet=quiet))
    rank = from_environment()
    if rank is not None and rank.rank:  # the first one says it for all; a launcher ends the others if one of them fails
        return
    print_records([record for outcome in outcomes for record in outcome.records], form)
    if lines := failed(outcomes):
        typer.echo("\n".join(lines), err=True)
        raise typer.Exit(SOME_FAILED)


def print_records(records: Sequence[Record], form: Format) -> None:
    """Print the results of several feature sets as one table, or in another format."""
    from featbench.evaluate.results import uniform
    from featbench.pipelines.cli.recorded_table import recorded_table
    from featbench.pipelines.recorded.choosing import USUAL_TASKS, ordered

    usual = [record for record in ordered(records) if record["task"] in USUAL_TASKS]
    print_results([recorded_table(usual)], uniform(records), form)
    others = dict.fromkeys(record["task"] for record in records if record["task"] not in USUAL_TASKS)
    if others and form == "text":
        typer.echo(
            f"Not in this table: {', '.join(others)}. See them by --json, or bench results --task NAME", err=True
        )


def run_member(pipeline: Pipeline, *, overwrite: bool, quiet: bool) -> list[Record]:
    """Do both stages of a pipeline, and return its records with what they are of."""
    from featbench.pipelines.recorded.reading import of_evaluation

    extract_features(pipeline, overwrite=overwrite, quiet=quiet, wait=True)
    report = evaluate_features(pipeline, [spec.name for spec in pipeline.layers], quiet=quiet)
    return of_evaluation(report.features, report.records)
