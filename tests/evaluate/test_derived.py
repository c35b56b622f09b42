"""Derived layers are what scikit-learn makes of the same rows, and are searched like any other."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.derived import Recipe, derived_layers
from featbench.evaluate.features.labels import Labelled, matched_labels
from featbench.evaluate.features.layers import EvalLayer, layers_of
from featbench.evaluate.knn.classification import evaluate_knn
from featbench.store import FeatureSet
from featbench.store.typing import Doubles, Floats
from tests.conftest import Bench, make_features


@pytest.fixture(scope="module")
def arrays() -> dict[str, dict[str, Floats]]:
    random = np.random.default_rng(0)
    mixing = random.standard_normal((6, 6))
    sizes = {"train": 90, "val": 33}
    return {
        split: {
            "x": (random.standard_normal((n, 6)) @ mixing + 3).astype(np.float32),
            "y": (100 * random.standard_normal((n, 4))).astype(np.float32),
        }
        for split, n in sizes.items()
    }


@pytest.fixture(scope="module")
def made(arrays: dict[str, dict[str, Floats]], tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    labels = {split: np.arange(len(each["x"])) % 3 for split, each in arrays.items()}
    valid = {split: np.arange(len(each["x"])) % 7 != 5 for split, each in arrays.items()}
    return make_features(tmp_path_factory.mktemp("derived") / "f", arrays, labels, valid=valid, rows_per_chunk=8)


def derive(made: FeatureSet, layers: list[str], **recipe: int) -> tuple[EvalLayer, Labelled]:
    train, _, _ = matched_labels(made)
    (view,) = derived_layers(layers_of(made, layers), Recipe(**recipe), train, memory=2**30)
    return view, train


def unit(values: Doubles | Floats) -> Doubles:
    return values / np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)


def test_layers_side_by_side_are_each_of_length_one(made: FeatureSet, arrays: dict[str, dict[str, Floats]]) -> None:
    view, train = derive(made, ["x", "y"], concatenate=True)
    expected = np.concatenate([unit(arrays["train"][name]) for name in "xy"], axis=1)
    assert np.allclose(view.select(train).read(), expected[train.rows], atol=1e-6)
    assert (view.name, view.dim, view.facts.tap) == ("x+y", 10, "x + y")


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("pca", [2, 6])
def test_components_are_those_of_scikit_learn(
    made: FeatureSet, arrays: dict[str, dict[str, Floats]], pca: int, whiten: bool
) -> None:
    view, train = derive(made, ["x"], pca=pca, whiten=whiten)
    fitted = PCA(pca, whiten=whiten).fit(arrays["train"]["x"][train.rows].astype(np.float64))
    for labelled in matched_labels(made)[:2]:
        theirs = fitted.transform(arrays[labelled.split]["x"][labelled.rows].astype(np.float64))
        ours = view.select(labelled).read()
        assert np.allclose(np.abs(ours), np.abs(theirs), atol=1e-4), "but for the sign of a component"


def test_centring_subtracts_the_mean_of_the_rows_that_take_part(
    made: FeatureSet, arrays: dict[str, dict[str, Floats]]
) -> None:
    view, train = derive(made, ["x"], center=True)
    values = arrays["train"]["x"][train.rows].astype(np.float64)
    assert np.allclose(view.select(train).read(), values - values.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("recipe", [{"concatenate": True, "pca": 3}, {"whiten": True}, {"center": True}])
def test_a_derived_row_is_the_same_in_every_block(made: FeatureSet, recipe: dict[str, int]) -> None:
    view, _ = derive(made, ["x", "y"][: 1 + recipe.get("concatenate", False)], **recipe)
    layer = view.layers["train"]
    whole = next(layer.map_blocks(lambda block: block.features.copy(), 1000))
    for rows in (8, 24):
        assert np.array_equal(
            np.concatenate(list(layer.map_blocks(lambda block: block.features.copy(), rows))), whole, equal_nan=True
        )
    assert np.array_equal(np.concatenate([layer.peek(chunk) for chunk in range(12)]), whole, equal_nan=True)


def test_lists_of_derived_layers_are_exact_and_kept_apart(made: FeatureSet) -> None:
    train, val, _ = matched_labels(made)
    before = evaluate_knn(made, ["x"], k=[5])[0]
    (view,) = derived_layers(layers_of(made, ["x"]), Recipe(whiten=True), train, memory=2**30)
    record = evaluate_knn(made, [view], k=[5])[0]
    values = {
        split: view.select(labelled).read().astype(np.float64) for split, labelled in (("train", train), ("val", val))
    }
    cosines = unit(values["val"]) @ unit(values["train"]).T
    predicted = []
    for row in cosines:
        nearest = np.argsort(-row)[:5]
        predicted.append(np.bincount(train.labels[nearest], np.exp(row[nearest] / 0.07)).argmax())
    assert record["top1"] == pytest.approx((np.array(predicted) == val.labels).mean())
    assert record["layer"] == "x.whiten"
    assert not record["neighbours_reused"]
    assert evaluate_knn(made, [view], k=[5])[0]["neighbours_reused"]
    assert evaluate_knn(made, ["x"], k=[5])[0]["top1"] == before["top1"]


def test_more_components_than_there_are_and_too_little_memory_are_refused(made: FeatureSet) -> None:
    train, _, _ = matched_labels(made)
    with pytest.raises(EvaluationError, match=r"--pca must be in \[1, 6\].*got 7"):
        derived_layers(layers_of(made, ["x"]), Recipe(pca=7), train, memory=2**30)
    with pytest.raises(EvaluationError, match="components of 6 numbers need"):
        derived_layers(layers_of(made, ["x"]), Recipe(pca=2), train, memory=1000)


def test_derived_layers_can_be_asked_for_on_the_command_line(made: FeatureSet, bench: Bench) -> None:
    arguments = ["evaluate", "--features", made.name, "--store", made.path.parent, "--k", "5"]
    shown = bench(*arguments, "--layers", "x,y", "--concat", "--pca", "3", "--whiten")
    assert shown.returncode == 0, shown.stderr
    assert "x+y.pca3.whiten" in shown.stdout
