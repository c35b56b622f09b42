"""`bench report`: the page and its data, without a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from featbench.evaluate.knn.classification import evaluate_knn
from featbench.pipelines.suites.curve import Curve, Point, save_curve
from featbench.store import FeatureSet
from featbench.store.typing import Floats, Ints
from tests.conftest import Bench, make_features

HOSTILE = (
    "<script>alert(1)</script>",
    "[red]x[/]",
    "a\"b'c",
    "\U0001f431 cat",
    "n" * 300,
    "]]><!-- \u2028 \x1b[2J --!>",
)
"""Names of classes that must be shown as they are, and do nothing."""


def made(path: Path, *, classes: tuple[str, ...] = HOSTILE, seed: int = 0) -> tuple[dict[str, Any], dict[str, Ints]]:
    """A feature set with two layers of some classes; returns its features and labels."""
    random = np.random.default_rng(seed)
    labels = {"train": np.arange(120) % len(classes), "val": np.arange(48) % len(classes)}
    centers = random.normal(size=(len(classes), 8))
    rows = {
        split: {
            name: (centers[each] + noise * random.normal(size=(len(each), 8))).astype(np.float32)
            for name, noise in (("early", 2.0), ("late", 0.9))
        }
        for split, each in labels.items()
    }
    make_features(path, rows, labels, class_names={"train": classes, "val": classes}, rows_per_chunk=64)
    return rows, labels


@pytest.fixture
def features(tmp_path: Path) -> Path:
    made(tmp_path / "features/mine")
    return tmp_path / "features/mine"


class Page(HTMLParser):
    """Texts, attributes and scripts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: list[str] = []
        self.data: Any = None
        self.tags: list[str] = []
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._open.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        tag, attributes = self._open[-1] if self._open else ("", {})
        if tag == "script" and attributes.get("type") == "application/json":
            self.data = json.loads(data)
        elif tag == "script":
            self.scripts.append(data)
        elif tag != "style":
            self.texts.append(data)


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def rows_of(table: dict[str, Any]) -> list[dict[str, Any]]:
    """Undo what saves space in the page."""
    columns = {
        key: [value["values"][code] for code in value["codes"]] if isinstance(value, dict) else value
        for key, value in table.items()
    }
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def nearest_classes(rows: dict[str, Any], labels: dict[str, Ints], layer: str, k: int) -> tuple[Floats, Ints]:
    """Cosines in float64 and classes of the k nearest, as numpy says."""
    x, y = (rows[split][layer].astype(np.float64) for split in ("train", "val"))
    x, y = x / np.linalg.norm(x, axis=1, keepdims=True), y / np.linalg.norm(y, axis=1, keepdims=True)
    cosines = y @ x.T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cosines, order, axis=1), labels["train"][order]


def test_accuracies_are_those_of_other_programs(tmp_path: Path, bench: Bench) -> None:
    rows, labels = made(tmp_path / "features/mine")
    evaluate_knn(FeatureSet.open(tmp_path / "features/mine"), ["early", "late"], k=[50])
    result = bench("report", "mine", "--k", "5,20", "--temperature", "0.1,0.5")
    assert result.returncode == 0, result.stderr
    page = read(tmp_path / "report.html")
    (chart,) = (each for each in page.data["charts"] if each["key"] == "accuracy-by-k")
    found = {(row["view"], row["k"], row["temperature"]): row["top1"] for row in rows_of(chart["table"])}
    for layer in ("early", "late"):
        for k, temperature in ((5, 0.1), (20, 0.5), (50, 0.1)):
            cosines, classes = nearest_classes(rows, labels, layer, k)
            votes = np.zeros((len(classes), len(HOSTILE)))
            for place in range(k):
                votes[np.arange(len(votes)), classes[:, place]] += np.exp(cosines[:, place] / temperature)
            expected = 100 * (votes.argmax(axis=1) == labels["val"]).mean()
            assert found[layer, k, f"{temperature:g}"] == pytest.approx(expected, abs=1e-4)
    of_one = KNeighborsClassifier(1, metric="cosine").fit(rows["train"]["late"], labels["train"])
    assert found["late", 1, "0.1"] == pytest.approx(100 * of_one.score(rows["val"]["late"], labels["val"]), abs=1e-4)


def test_classes_and_confusions_add_up(tmp_path: Path, bench: Bench) -> None:
    rows, labels = made(tmp_path / "features/mine")
    evaluate_knn(FeatureSet.open(tmp_path / "features/mine"), ["late"], k=[1])
    assert bench("report", "mine", "--layers", "late", "--k", "1").returncode == 0
    data = read(tmp_path / "report.html").data
    predicted = nearest_classes(rows, labels, "late", 1)[1][:, 0]
    (table,) = data["byClass"]
    for number, name in enumerate(HOSTILE[:5]):
        place = table["class"].index(number)
        assert data["classes"][number] == name
        assert table["right"][place] == int((predicted[labels["val"] == number] == number).sum())
    for true, other, count in data["pairs"][0]:
        assert count == int(((labels["val"] == true) & (predicted == other)).sum())
        assert true != other
    (chart,) = (each for each in data["charts"] if each["key"] == "confusion")
    assert sum(chart["table"]["count"]) == 48


def test_names_from_data_are_shown_and_do_nothing(features: Path, tmp_path: Path, bench: Bench) -> None:
    evaluate_knn(FeatureSet.open(features), ["early", "late"], k=[5])
    assert bench("report", "mine", "--k", "5").returncode == 0
    page = read(tmp_path / "report.html")
    assert len(page.scripts) == 2  # and no other element of that kind
    assert page.data["classes"][:5] == list(HOSTILE[:5])
    assert page.data["classes"][5] == "]]><!-- \\u2028 \\x1b[2J --!>"
    shown = "".join(page.texts)
    assert HOSTILE[0] in shown
    assert HOSTILE[4] in shown
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_the_page_loads_nothing_and_runs_only_its_own_scripts(features: Path, tmp_path: Path, bench: Bench) -> None:
    evaluate_knn(FeatureSet.open(features), ["late"], k=[5])
    assert bench("report", "mine", "--layers", "late", "--k", "5").returncode == 0
    page = read(tmp_path / "report.html")
    for name, value in page.attributes:
        if name in ("src", "href", "srcset", "action", "data"):
            assert value.startswith(("#", "data:")), (name, value)
    (policy,) = (value for name, value in page.attributes if name == "content" and "default-src" in str(value))
    assert policy.startswith("default-src 'none'; img-src data:; ")
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts]
    assert allowed == digests
    assert "unsafe-eval" not in policy


def test_without_kept_neighbours_the_command_that_makes_them_is_given(features: Path, bench: Bench) -> None:
    result = bench("report", "mine")
    assert result.returncode == 2
    assert "no neighbours of early, late are kept" in result.stderr
    (command,) = re.findall(r"`bench ([^`]+)`", result.stderr)
    assert bench(*command.split(), "--k", "10").returncode == 0
    assert bench("report", "mine").returncode == 0
    shorter = bench("report", "mine", "--k", "20")
    assert shorter.returncode == 2
    assert "lists of 10 neighbours are kept of early, too short for k 20" in shorter.stderr


def test_what_is_damaged_is_left_out_and_the_rest_of_the_page_says_so(
    features: Path, tmp_path: Path, bench: Bench
) -> None:
    """Kept lists of one layer, a clustering, and features that only the map needs."""
    assert bench("evaluate", "--features", "mine", "--k", "3", "--clusters", "3").returncode == 0
    (lists,) = features.glob("neighbours/early-*/rows/c/0/0")
    (clusters,) = features.glob("clusters/late-*/zarr.json")
    rows = features / "val/late/c/0/0"
    undamaged = rows.read_bytes()
    for path in (lists, clusters, rows):
        path.write_bytes(path.read_bytes()[:40])
    result = bench("report", "mine")
    assert result.returncode == 0, result.stderr
    page = read(tmp_path / "report.html")
    assert [view["name"] for view in page.data["views"]] == ["late"]
    assert not [chart["key"] for chart in page.data["charts"] if chart["key"].startswith("map")]
    said = "".join(page.texts)
    for part in (
        "without early. features/mine: the kept neighbours of early are damaged or gone. Search with `bench evaluate",
        f"without clustering {clusters.parent.name}: zarr.json is not JSON",
        "without a map of late",
    ):
        assert part in result.stderr
        assert part in said
    for layers, path in (("early,late", lists), ("early", next(features.glob("neighbours/late-*/zarr.json")))):
        path.unlink()
        named = bench("report", "mine", "--layers", layers, "-o", "other.html")
        assert named.returncode == 2
        assert "the kept neighbours of early are damaged or gone" in named.stderr
    result = bench("report", "mine", "-o", "other.html")
    assert result.returncode == 2
    assert "the kept neighbours of early, late are damaged or gone" in result.stderr
    assert not (tmp_path / "other.html").exists()
    rows.write_bytes(undamaged)
    command = re.findall(r"Search with `bench ([^`]+)`", result.stderr)[0]
    assert bench(*command.split(), "--k", "3").returncode == 0
    assert bench("report", "mine", "--k", "3", "--thumbnail", "0").returncode == 0


def test_without_labels_the_page_has_no_accuracies(tmp_path: Path, bench: Bench) -> None:
    random = np.random.default_rng(0)
    rows = {split: {"x": random.normal(size=(30, 4)).astype(np.float32)} for split in ("train", "val")}
    labels = dict.fromkeys(("train", "val"), np.full(30, -1))
    make_features(tmp_path / "features/N", rows, labels, class_names={"train": (), "val": ()})
    assert bench("evaluate", "--features", "N", "--k", "3").returncode == 0
    result = bench("report", "N")
    assert result.returncode == 0, result.stderr
    page = read(tmp_path / "report.html")
    assert [chart["key"] for chart in page.data["charts"]] == ["map-pca"]
    assert "there are no accuracies" in "".join(page.texts)


def test_charts_are_written_as_files(features: Path, tmp_path: Path, bench: Bench) -> None:
    evaluate_knn(FeatureSet.open(features), ["early", "late"], k=[3])
    assert bench("report", "mine", "--k", "3", "--protocol", "majority", "--plots", "plots").returncode == 0
    names = {path.stem for path in (tmp_path / "plots").iterdir()}
    assert names == {
        *("accuracy-by-k", "layer-curve"),
        *(f"{kind}_{layer}" for kind in ("confusion", "map-pca") for layer in ("early", "late")),
    }
    assert (tmp_path / "plots/layer-curve.png").read_bytes().startswith(b"\x89PNG")
    assert "top-1 accuracy (%)" in (tmp_path / "plots/layer-curve.svg").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("mine", "mine"), "named twice"),
        (("mine", "-o", "features"), "a folder; name a file"),
        (("other",), "no such feature set"),
        (("mine", "--layers", "lat"), "no layer 'lat'"),
        (("mine", "-o", "features/mine/zarr.json/x.html"), "x.html: cannot write: features/mine/zarr.json is a file"),
        (("mine", "--plots", "features/mine/zarr.json"), "zarr.json: can't be written"),
        (("mine", "--data", "elsewhere"), "elsewhere: no such folder"),
    ],
)
def test_what_is_wrong_is_said(features: Path, bench: Bench, words: tuple[str, ...], message: str) -> None:
    evaluate_knn(FeatureSet.open(features), ["early", "late"], k=[3])
    result = bench("report", *words)
    assert result.returncode == 2
    assert not Path("report.html").exists()
    assert message in result.stderr


def test_several_feature_sets_are_compared_as_bench_compare_does(tmp_path: Path, bench: Bench) -> None:
    """Their classes are numbered differently, and one lacks a query."""
    made(tmp_path / "features/ours", seed=0)
    rows, labels = made(tmp_path / "other/theirs", seed=0)
    names = {"train": HOSTILE[::-1], "val": HOSTILE[::-1]}
    random = np.random.default_rng(5)
    noisy = {
        split: {name: each + random.normal(size=each.shape).astype(np.float32) for name, each in layers.items()}
        for split, layers in rows.items()
    }
    turned = {split: len(HOSTILE) - 1 - each for split, each in labels.items()}
    valid = {split: np.ones(len(each), np.bool_) for split, each in labels.items()}
    valid["val"][4] = False
    make_features(tmp_path / "features/theirs", noisy, turned, class_names=names, valid=valid)
    for name in ("ours", "theirs"):
        evaluate_knn(FeatureSet.open(tmp_path / "features" / name), ["early", "late"], k=[5])
    assert bench("report", "ours", "theirs", "--k", "5").returncode == 0
    data = read(tmp_path / "report.html").data
    result = bench("compare", "ours", "theirs", "--k", "5", "--json")
    compared = {record["first"].split("/")[1]: record for record in json.loads(result.stdout)}
    for found in data["comparisons"]:
        first, second = data["views"][found["first"]], data["views"][found["second"]]
        assert (first["set"], second["set"]) == ("ours", "theirs")
        if first["layer"] != second["layer"]:
            continue
        record = compared.pop(first["layer"])
        assert found["top1"] == [record["top1_first"], record["top1_second"]]
        assert found["queries"] == record["num_val"] == 47
        for key in ("low", "high", "p_value", "only_first", "only_second"):
            assert found["difference"][key] == record[key]
        assert len(found["onlyFirst"]) == min(12, record["only_first"])
    assert not compared
    late = next(each for each in data["comparisons"] if data["views"][each["first"]]["layer"] == "late")
    lists = [_nearest_rows(each, 5) for each in (rows, noisy)]
    shared = [len({*ours} & {*theirs}) / 5 for at, (ours, theirs) in enumerate(zip(*lists, strict=True)) if at != 4]
    assert late["overlap"]["value"] == pytest.approx(np.mean(shared))
    assert 4 not in [data["pictures"]["row"][query["place"]] for query in data["neighbours"]["queries"]]


def _nearest_rows(rows: dict[str, Any], k: int) -> list[list[int]]:
    x, y = (rows[split]["late"].astype(np.float64) for split in ("train", "val"))
    cosines = (y / np.linalg.norm(y, axis=1, keepdims=True)) @ (x / np.linalg.norm(x, axis=1, keepdims=True)).T
    nearest: list[list[int]] = np.argsort(-cosines, axis=1)[:, :k].tolist()
    return nearest


def test_feature_sets_of_other_images_are_refused(tmp_path: Path, bench: Bench) -> None:
    made(tmp_path / "features/ours")
    made(tmp_path / "features/theirs", classes=HOSTILE[:4])
    for name in ("ours", "theirs"):
        evaluate_knn(FeatureSet.open(tmp_path / "features" / name), ["late"], k=[5])
    result = bench("report", "ours", "theirs")
    assert result.returncode == 2
    assert "differ in val images or labels" in result.stderr


def test_protocols_with_and_without_a_temperature_are_shown_together(
    features: Path, tmp_path: Path, bench: Bench
) -> None:
    words = ("--protocol", "majority,dino", "--k", "3", "--layers", "late")
    assert bench("evaluate", "--features", "mine", *words).returncode == 0
    assert bench("report", "mine", *words).returncode == 0
    data = read(tmp_path / "report.html").data
    assert [view["name"] for view in data["views"]] == ["late (majority)", "late (dino)"]
    (chart,) = (each for each in data["charts"] if each["key"] == "accuracy-by-k")
    assert chart["options"][0] == "0.07"
    assert {row["temperature"] for row in rows_of(chart["table"]) if row["view"] == "late (majority)"} == {"none"}


def test_the_curve_of_a_training_run_is_shown_with_its_checkpoints(tmp_path: Path, bench: Bench) -> None:
    made(tmp_path / "features/run-e1")
    bench("evaluate", "--features", "run-e1", "--k", "5,20")
    measured = {0: (0.25, 0.1), 1: (0.5, 0.3), 4: (0.75, 0.2)}
    points = [
        Point(
            file=f"e{epoch}.pth", size=1, modified_ns=1, settings="", features=f"run-e{epoch}", epoch=epoch,
            state="done",
            records=(
                {"task": "knn", "layer": "late", "protocol": "dino", "k": 20, "temperature": 0.07, "top1": top1,
                 "top1_low": top1 - 0.1, "top1_high": top1 + 0.1},
                {"task": "knn", "layer": "late", "protocol": "dino", "k": 5, "temperature": 0.07, "top1": 0.0},
                {"task": "kmeans", "layer": "late", "clusters": 6, "split": "val", "nmi": nmi},
            ),
        )
        for epoch, (top1, nmi) in measured.items()
    ]  # fmt: skip
    save_curve(tmp_path / "features", Curve(name="run", folder="/runs", points=points))
    save_curve(tmp_path / "features", Curve(name="another", folder="/others", points=points[2:]))
    (tmp_path / "features/.curves/broken.json").write_text("[]")
    assert bench("report", "run-e1").returncode == 0
    page = read(tmp_path / "report.html")
    training = [each for each in page.data["charts"] if each["key"].startswith("training")]
    assert [each["title"] for each in training] == [
        "Top-1 accuracy at k = 20, T = 0.07 of run", "NMI of k-means of run"
    ]  # fmt: skip
    for place, chart in enumerate(training):
        rows = rows_of(chart["table"])
        assert [(row["at"], row["value"]) for row in rows] == [(e, 100 * both[place]) for e, both in measured.items()]
        assert [row["here"] for row in rows] == [False, True, False]
    assert any("broken.json: a curve that can't be read" in text for text in page.texts)
