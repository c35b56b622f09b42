"""`bench doctor`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from featbench.pipelines.cli.display import show_facts
from featbench.pipelines.cli.options import Store


def doctor(
    store: Store = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Check this machine, this installation and a store.

    Says what to do about problems. In the folder of the feature sets, or its parent if there is none yet, a file of
    64 MiB is written and read, and a lock is tried by two processes; both are removed. Exit code 1 if there is a
    problem.
    """
    from featbench.pipelines.doctor.disk import disk_findings
    from featbench.pipelines.doctor.hardware import hardware_findings
    from featbench.pipelines.doctor.software import software_findings

    sections = {
        "Installation": software_findings(),
        "Machine": hardware_findings(),
        "Store": disk_findings(store or Path("features")),
    }
    found = {title: list(findings) for title, findings in sections.items()}
    every = [each for findings in found.values() for each in findings]
    counts = {state: sum(each.state == state for each in every) for state in ("problem", "note", "good")}
    if as_json:
        content = [{"section": title} | each.record() for title, findings in found.items() for each in findings]
        typer.echo(json.dumps({"counts": counts, "findings": content}, indent=1))
    else:
        for title, findings in found.items():
            show_facts([(each.name, str(each)) for each in findings], title=title)
            typer.echo("")
        plural = {state: "" if count == 1 or state == "good" else "s" for state, count in counts.items()}
        typer.echo(", ".join(f"{count} {state}{plural[state]}" for state, count in counts.items()))
    if counts["problem"]:
        raise typer.Exit(1)
