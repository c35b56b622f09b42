"""Where the numbers come from: what made the features, the software, and the commands that do it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from featbench.pipelines.report.commands import evaluate_command, report_command
from featbench.pipelines.report.evaluations import Evaluated, Source
from featbench.store.names import visible

MOST_CHARACTERS = 4000
"""Longest text of a value of the manifest that is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where the numbers of one feature set come from."""

    name: str
    facts: Sequence[tuple[str, str]]
    settings: Sequence[tuple[str, str]]
    """All that could change a feature."""

    software: Sequence[tuple[str, str]]
    pipeline: str
    """The pipeline that extracted them, as YAML; empty if they were imported."""

    commands: str


def provenance_of(source: Source, evaluated: Sequence[Evaluated]) -> Provenance:
    """Say what a feature set was made from, and by which commands its part of the report can be made again."""
    features = source.features
    manifest = features.manifest
    pipeline = manifest.notes.get("pipeline")
    text = yaml.safe_dump(pipeline, sort_keys=False, allow_unicode=True) if isinstance(pipeline, dict) else ""
    counts = [f"{info.num_rows:,} {split}" for split, info in manifest.splits.items()]
    ours = [each for each in evaluated if each.view.source is source]
    facts = [
        ("features", features.name), ("folder", str(features.path.resolve())), ("made", manifest.created),
        ("weights", str(manifest.notes.get("weights", "unknown"))), ("rows", ", ".join(counts)),
        ("classes", f"{len(source.labels.class_names):,}"), ("stored as", manifest.dtype),
        ("layers", ", ".join(f"{name} ({info.dim:,})" for name, info in manifest.layers.items())),
        ("fingerprint", manifest.fingerprint),
    ]  # fmt: skip
    return Provenance(
        name=features.name, facts=facts, settings=[(name, _written(value)) for name, value in manifest.settings()],
        software=[(name, str(value)) for name, value in manifest.software.items()], pipeline=visible(text),
        commands="\n".join(_commands(source, ours, is_imported=not text)),
    )  # fmt: skip


def _commands(source: Source, evaluated: Sequence[Evaluated], *, is_imported: bool) -> list[str]:
    features = source.features
    extract = "# imported with `bench import`" if is_imported else f"bench extract {shlex.quote(features.name)}.yaml"
    views = [each.view for each in evaluated]
    ks = sorted({result.k for each in evaluated for result in each.results})
    temperatures = sorted({t for each in evaluated for result in each.results if (t := result.temperature)})
    evaluate = evaluate_command(
        features, layers=[view.layer.name for view in views], protocols=[view.protocol_name for view in views],
        ks=ks, temperatures=temperatures, leave_one_out=source.leave_one_out,
    )  # fmt: skip
    return [extract, evaluate, report_command(features)]


def _written(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}... ({len(text):,} characters)"
