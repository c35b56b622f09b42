"""Translate every YAML file of a checkout of VISSL, and print which are taken and why others are refused.

python docs/vissl_configs.py VISSL > docs/vissl-configs.md
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from featbench.pipelines.config.pipeline import make_pipeline
from featbench.pipelines.foreign.vissl_reading import read_vissl
from featbench.store import BenchError

BENCHMARK = "benchmark/nearest_neighbor/eval_resnet_8gpu_in1k_kNN"
EXTRACTION = "feature_extraction/extract_resnet_in1k_8gpu"

BASES = {
    "benchmark/nearest_neighbor/models/": BENCHMARK,
    "feature_extraction/dataset/": EXTRACTION,
    "feature_extraction/trunk_only/": EXTRACTION,
    "feature_extraction/with_head/": EXTRACTION,
}
"""The file that those of a folder override. The others are read alone."""

LISTED = ("benchmark/nearest_neighbor/", "feature_extraction/")
"""Folders whose files have a row each; the others have one for each folder."""

LONGEST = 110
"""Characters of a reason."""

HEAD = """# VISSL's configurations

Each YAML file of VISSL was translated by `python docs/vissl_configs.py VISSL > docs/vissl-configs.md`. Model files and
parts of a configuration were read on top of the base that they override. A key that would change a result and is not
supported is an error that names it; a file that trains, or evaluates by something other than kNN, is refused by its
keys. `EVAL_MODE_ON: must be True` is said of those that do not extract features.

| file | base | taken | refused, and why |
|---|---|---|---|"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one file."""

    name: str
    reason: str
    """Why it is refused; "" if it is taken."""


def outcomes(root: Path) -> Iterator[Outcome]:
    """Translate every file below `configs/config`, in order."""
    top = root / "configs/config"
    for file in sorted(top.rglob("*.yaml")):
        name = file.relative_to(top).with_suffix("").as_posix()
        base = next((base for folder, base in BASES.items() if name.startswith(folder)), None)
        names = [base, name] if base else [name]
        try:
            made = read_vissl([], names=names, root=root)
            make_pipeline(dict(made.settings), where=name)
        except BenchError as error:
            yield Outcome(name=name, reason=_reason(str(error).replace(f"{top}/", "")))
        else:
            yield Outcome(name=name, reason="")


def _reason(message: str) -> str:
    """The first fault of a message, without values that differ from file to file."""
    lines = message.splitlines()
    text = lines[1].strip() if len(lines) > 1 else lines[0]
    text = re.sub(r"\s+", " ", re.split(r"[.;] ", text)[0]).replace("|", "/")
    return text if len(text) <= LONGEST else text[:LONGEST].rpartition(" ")[0] + " ..."


def rows(found: list[Outcome]) -> Iterator[str]:
    """Rows of the table: one for each listed file, one for each other folder."""
    folders: dict[str, list[Outcome]] = {}
    for each in found:
        if each.name.startswith(LISTED):
            base = next((base.rsplit("/", 1)[1] for folder, base in BASES.items() if each.name.startswith(folder)), "")
            yield f"| `{each.name}` | {base} | {'' if each.reason else 'yes'} | {each.reason} |"
        else:
            folders.setdefault("/".join(each.name.split("/")[:2]), []).append(each)
    for folder, inner in folders.items():
        taken = sum(not each.reason for each in inner)
        reasons = Counter(each.reason for each in inner if each.reason).most_common(2)
        shown = "; ".join(f"{reason} ({count})" for reason, count in reasons)
        yield f"| `{folder}`, {len(inner)} files | | {taken} | {shown} |"


if __name__ == "__main__":
    found = list(outcomes(Path(sys.argv[1])))
    print(HEAD)
    print("\n".join(rows(found)))
