"""Keeping a store in order: `bench du`, `rm` and `clean`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featbench.pipelines.cli.display import Csv, Json, Latex, Markdown, chosen_format, print_results, show
from featbench.pipelines.cli.feature_sets import open_features, path_of, store_folder
from featbench.pipelines.cli.options import Store

if TYPE_CHECKING:
    from featbench.pipelines.housekeeping.unused import Unused
    from featbench.store import FeatureSet

Names = Annotated[
    list[str] | None, typer.Argument(metavar="[NAME]...", help="Names of feature sets, or their paths; all by default.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def du(
    names: Names = None,
    store: Store = None,
    as_json: Json = False,
    as_csv: Csv = False,
    as_markdown: Markdown = False,
    as_latex: Latex = False,
) -> None:
    """Say how much disk feature sets take, and what for.

    Without names all of a store, largest first; with names their layers and other parts.
    """
    from featbench.pipelines.cli.store_tables import part_table, usage_table
    from featbench.pipelines.housekeeping.listing import beside_records, part_records, usage_records
    from featbench.store.feature_set import feature_sets

    form = chosen_format(json=as_json, csv=as_csv, markdown=as_markdown, latex=as_latex)
    if names:
        parts = [record for name in names for record in part_records(open_features(name, store))]
        return print_results([part_table(parts)], parts, form)
    folder = store_folder(store)
    records = usage_records(feature_sets(folder))
    records += beside_records(folder, records)
    print_results([usage_table(records)], records, form)


def rm(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names of feature sets, or their paths.")],
    store: Store = None,
    yes: Yes = False,
) -> None:
    """Remove feature sets, with all that is kept in them.

    Asks first. A feature set that a run is writing to, and anything that is no feature set, is refused.
    """
    from featbench.pipelines.cli.cells import size_in_words
    from featbench.pipelines.housekeeping.listing import num_results
    from featbench.store import FeatureSet, StoreError
    from featbench.store.creation import remove
    from featbench.store.usage import size_on_disk

    paths = list(dict.fromkeys(path_of(name, store) for name in names))
    sizes = {path: size_on_disk(path.resolve()) for path in paths if _refuse_others(path)}
    for path, size in sizes.items():
        link = f" (a link to {path.resolve()})" if path.is_symlink() else ""
        try:
            held = f", {num_results(FeatureSet.open(path))} recorded evaluations"
        except StoreError:
            held = ", damaged"
        typer.echo(f"{path}{link}: {size_in_words(size)}{held}", err=True)
    if not _agreed(yes, f"Remove {'it' if len(sizes) == 1 else f'these {len(sizes)}'} for good?"):
        return
    for path, size in sizes.items():
        remove(path)
        if path.is_symlink():
            path.unlink()
        typer.echo(f"Removed {path} ({size_in_words(size)}).")


def clean(
    names: Names = None,
    store: Store = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    yes: Yes = False,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Remove kept neighbours and clusters that are of no use.

    Those of layers that have changed, of other versions, superseded, damaged and half-written ones. Asks first, and
    only lists them where there is no terminal to ask on. Features, labels and results are never removed.
    """
    from featbench.pipelines.cli.cells import size_in_words
    from featbench.pipelines.cli.store_tables import unused_table
    from featbench.pipelines.housekeeping.unused import remove_unused, unused_beside, unused_in
    from featbench.store.feature_set import feature_sets

    form = chosen_format(json=as_json, csv=as_csv, markdown=False, latex=False)
    folder = store or Path("features") if names else store_folder(store)
    opened: Sequence[FeatureSet] = (
        [open_features(name, store) for name in names] if names else list(feature_sets(folder))
    )
    found: list[Unused] = [each for features in opened for each in unused_in(features)]
    found += [] if names else unused_beside(folder)
    if form != "text":
        print_results([], [each.record() for each in found], form)
    elif not found:
        return typer.echo("Nothing to remove.")
    else:
        show(unused_table(found))
    if dry_run or not found or not (yes or sys.stdin.isatty()):
        if found and not dry_run:
            typer.echo("Nothing was removed. To remove them: bench clean --yes", err=True)
        return
    if not _agreed(yes, "Remove them?"):
        return
    removed = list(remove_unused(found))
    typer.echo(
        f"Removed {len(removed)} of {len(found)} ({size_in_words(sum(each.bytes for each in removed))}).", err=True
    )


def _refuse_others(path: Path) -> bool:
    from featbench.store import StoreError, suggest
    from featbench.store.errors import NotFoundError
    from featbench.store.feature_set import feature_sets, looks_like_feature_set

    if not path.is_dir():
        others = [features.name for features in feature_sets(path.parent)]
        raise NotFoundError(
            f"{path}: no such feature set. {suggest(path.name, others) if others else 'There is none.'}"
        )
    if not looks_like_feature_set(path):
        raise StoreError(f"{path}: not a feature set (it has neither journals nor a manifest), so it is not removed")
    return True


def _agreed(yes: bool, question: str) -> bool:
    """Whether the user agrees; where nobody can be asked, --yes is needed."""
    from featbench.store import BenchError

    if yes:
        return True
    if not sys.stdin.isatty():
        raise BenchError("there is no terminal to ask on, so nothing was removed. To remove without asking: --yes")
    return typer.confirm(question, err=True)
