"""A process dies, or the power fails, at any operation on files: what follows finds its way, to the same bytes.

The operations are those of `os` by which this program changes files. The default run takes some of them; `slow` dies at
all of them, and cuts the power after 40 of each command.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from featbench.pipelines.foreign.importing import Arrays, import_features
from featbench.store import (
    ChunkWriter,
    FeatureSet,
    LayerInfo,
    Manifest,
    SplitRows,
    StoreError,
    load_cached,
    make_ready,
    open_or_create,
    save_cached,
    verify,
)
from featbench.store.paths import METADATA_COPY
from featbench.store.verification import repair
from tests.reliability.disk import Killed, Recorder, dying, lay_out, without_waiting

RANDOM = np.random.default_rng(3)
ROWS = {"train": 5, "val": 3}
VALUES = {
    layer: {split: RANDOM.standard_normal((count, *shape)).astype(np.float32) for split, count in ROWS.items()}
    for layer, shape in (("res4", (2, 2)), ("res5", (3,)))
}
LABELS = {"train": np.array([0, 1, 2, 1, 0]), "val": np.array([2, 1, 0])}
LISTS = {"rows": np.arange(6).reshape(3, 2)}


def extracted(path: Path, layers: list[str], *, trunk: str = "one", overwrite: bool = False) -> None:
    """What `bench extract` does, with arrays in place of a model."""
    rows = {
        split: SplitRows(labels=labels, paths=[f"{i}.jpg" for i in range(len(labels))], class_names=("a", "b", "c"))
        for split, labels in LABELS.items()
    }
    manifest = Manifest(
        made_from={"model": {"trunk": trunk}}, dtype="float32", compression="none", rows_per_chunk=2,
        splits={split: each.info() for split, each in rows.items()},
    )  # fmt: skip
    features = open_or_create(path, manifest, rows, overwrite=overwrite)
    infos = {name: LayerInfo(tap=name, pooling=None, shape=VALUES[name]["val"].shape[1:]) for name in layers}
    with features.lock() as lock:
        make_ready(features, rows, infos)
        writer = ChunkWriter(features, rank=lock.claim_journal(0))
        for work in features.pending(layers):
            chunk = features.grid(work.split).rows(work.chunk)
            part = {name: VALUES[name][work.split][chunk.start : chunk.stop] for name in work.layers}
            writer.write(work, part, np.ones(len(chunk), np.bool_))


def imported(root: Path, layers: list[str]) -> None:
    splits = {
        split: Arrays(layers={name: VALUES[name][split] for name in layers}, labels=LABELS[split]) for split in ROWS
    }
    import_features(splits, store=root, name="f")


def damaged(root: Path) -> None:
    extracted(root / "f", ["res4", "res5"])
    (root / "f/train/res5/c/1/0").write_bytes(b"")
    (root / "f/val/res4/zarr.json").unlink()
    (root / "f/zarr.json").write_bytes(b"{}")
    journal = root / "f/journals/rank-00000.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b"res4", b"res3", 1))


def repaired(root: Path) -> None:
    if (root / "f").exists():
        repair(root / "f")
    extracted(root / "f", ["res4", "res5"])


def kept(root: Path, recall: float) -> None:
    save_cached(FeatureSet.open(root / "f"), "neighbours", "res5-key", LISTS, {"recall": recall})
    FeatureSet.open(root / "f").save_result("now", {"recall": recall})


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is on disk before, and the command that is disturbed, then given again."""

    before: Callable[[Path], object] = lambda root: None
    act: Callable[[Path], object]
    is_damaged: bool = False
    """Before."""


Undisturbed = Callable[[Scenario], tuple[Path, dict[str, bytes]]]


SCENARIOS = {
    "extract": Scenario(act=lambda root: extracted(root / "deep/er/f", ["res4", "res5"])),
    "add a layer": Scenario(
        before=lambda root: extracted(root / "f", ["res5"]), act=lambda root: extracted(root / "f", ["res4", "res5"])
    ),
    "overwrite": Scenario(
        before=lambda root: extracted(root / "f", ["res4"], trunk="other"),
        act=lambda root: extracted(root / "f", ["res4", "res5"], overwrite=True),
    ),
    "repair": Scenario(before=damaged, act=repaired, is_damaged=True),
    "import": Scenario(act=lambda root: imported(root, ["res4", "res5"])),
    "import a further layer": Scenario(
        before=lambda root: imported(root, ["res5"]), act=lambda root: imported(root, ["res4"])
    ),
    "keep results": Scenario(
        before=lambda root: (extracted(root / "f", ["res5"]), kept(root, 0.25)), act=lambda root: kept(root, 0.75)
    ),
}


def content_of(root: Path) -> dict[str, bytes]:
    """The bytes that must come back: of chunks, metadata and kept results. Journals may be in another order."""
    names = {file.relative_to(root).as_posix(): file for file in root.rglob("*") if file.is_file()}
    return {
        name: _without_time(file.read_bytes())
        for name, file in names.items()
        if ("/c/" in name or name.endswith(".json")) and ".partial" not in name
    }


def _without_time(content: bytes) -> bytes:
    return re.sub(rb'"created\W+[^"]*"|"(featbench_)?sha256\W+[^"]*"', b"", content.replace(b"\\", b""))


def refuse_or_read_right(root: Path) -> None:
    """Whatever a reader gets is what was written; kept results are the old ones, the new ones, or none."""
    for path in [path for path in (root / "f", root / "deep/er/f") if path.exists()]:
        try:
            features = FeatureSet.open(path)
        except StoreError:
            continue
        for split in ROWS:
            for layer in features.manifest.layers:
                try:
                    found = features.layer(split, layer).read(), features.labels(split)
                except StoreError:
                    continue
                assert np.array_equal(found[0], VALUES[layer][split].reshape(ROWS[split], -1))
                assert np.array_equal(found[1], LABELS[split])
        lists = load_cached(features, "neighbours", "res5-key")
        if lists is not None:
            assert lists[1]["recall"] in (0.25, 0.75)
            assert np.array_equal(lists[0]["rows"], LISTS["rows"])


def damage(root: Path) -> list[str]:
    """Faults under a feature set's name, but for what is pending; the copy may be that of the next step."""
    faults = [fault for path in (root / "f", root / "deep/er/f") if path.exists() for fault in verify(path)]
    return [
        f"{each.where}: {each.what}" for each in faults if "pending" not in each.what and each.where != METADATA_COPY
    ]


def go_on(scenario: Scenario, root: Path, expected: dict[str, bytes], what: str) -> None:
    """Give the same command again: it ends with the bytes of an undisturbed one, and nothing else is left."""
    refuse_or_read_right(root)
    if not scenario.is_damaged:
        assert not damage(root), what
    scenario.act(root)
    path = next(path for path in (root / "f", root / "deep/er/f") if path.exists())
    assert not list(verify(path)), what
    assert content_of(root) == expected, what
    hidden = [file for file in path.parent.iterdir() if file.name.startswith(".")]
    assert not hidden, what


def chosen(count: int, sample: int | None) -> list[int]:
    """All numbers below `count`, or some that are spread among them."""
    if sample is None or sample >= count:
        return list(range(count))
    return sorted(np.random.default_rng(count).choice(count, sample, replace=False).tolist())


@pytest.fixture
def undisturbed(tmp_path: Path) -> Undisturbed:
    """Make the state before a scenario, and the bytes after it."""

    def make(scenario: Scenario) -> tuple[Path, dict[str, bytes]]:
        before, after = tmp_path / "before", tmp_path / "after"
        with without_waiting():
            before.mkdir()
            scenario.before(before)
            shutil.copytree(before, after)
            scenario.act(after)
        return before, content_of(after)

    return make


@pytest.mark.parametrize("sample", [pytest.param(3, id="some"), pytest.param(None, id="all", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SCENARIOS)
def test_after_a_kill_at_any_operation_the_same_command_gives_the_same_bytes(
    tmp_path: Path, undisturbed: Undisturbed, name: str, sample: int | None
) -> None:
    scenario = SCENARIOS[name]
    before, expected = undisturbed(scenario)
    shutil.copytree(before, tmp_path / "counted")
    with dying(10**9) as operations:
        scenario.act(tmp_path / "counted")
    for at in chosen(len(operations), sample):
        root = tmp_path / "killed"
        shutil.copytree(before, root)
        with pytest.raises(Killed), dying(at):
            scenario.act(root)
        with without_waiting():
            go_on(scenario, root, expected, f"{name}: killed at operation {at}")
        shutil.rmtree(root)
    print(f"\n{name}: {len(operations)} operations")


@pytest.mark.parametrize("sample", [pytest.param(2, id="some"), pytest.param(40, id="more", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SCENARIOS)
def test_after_a_power_cut_at_any_operation_the_same_command_gives_the_same_bytes(
    tmp_path: Path, undisturbed: Undisturbed, name: str, sample: int
) -> None:
    scenario = SCENARIOS[name]
    before, expected = undisturbed(scenario)
    shutil.copytree(before, tmp_path / "recorded")
    recorder = Recorder(tmp_path / "recorded")
    with recorder.recording():
        scenario.act(tmp_path / "recorded")
    seen = set()
    for count in chosen(len(recorder.events) + 1, sample):
        for variant, state in recorder.states_after(count):
            key = hash(tuple(sorted(state.items())))
            if key in seen:
                continue
            seen.add(key)
            root = tmp_path / "cut"
            lay_out(state, root)
            with without_waiting():
                go_on(scenario, root, expected, f"{name}: power cut after operation {count}: {variant}")
            shutil.rmtree(root)
    print(f"\n{name}: {len(recorder.events)} operations, {len(seen)} states of the disk")
