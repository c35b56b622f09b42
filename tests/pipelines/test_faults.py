"""Wrong settings are told in plain words: what was expected, and what was given."""

from __future__ import annotations

import pytest
import yaml

from featbench.pipelines.config.pipeline import PipelineError, make_pipeline
from featbench.store.manifest import Manifest, SplitInfo, differences
from tests.conftest import Bench


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("extract.batch_size", "ten", "expected a whole number or 'auto'; got 'ten'"),
        ("extract.batch_size", 1.5, "expected a whole number or 'auto'; got 1.5"),
        ("extract.batch_size", 0, "expected more than 0 or 'auto'; got 0"),
        ("extract.batch_size", 70_000, "expected at most 65536 or 'auto'; got 70000"),
        ("storage.dtype", "int8", "expected 'float32' or 'float16'; got 'int8'"),
        ("weights.trust", "perhaps", "expected true or false; got 'perhaps'"),
        ("data.root", 5, "expected a path; got 5"),
        ("data.dataset", 5, "expected text; got 5"),
        ("model.options", 3, "expected names with values; got 3"),
        ("model.heads", 3, "expected a list; got 3"),
        ("extract", 7, "expected settings with values; got 7"),
        ("evaluate.knn.k", [1.5], "expected a whole number; got 1.5"),
        ("evaluate.knn.temperature", [float("nan")], "must be positive; got [nan]"),
        ("evaluate.kmeans.clusters", ["many"], "expected a whole number or 'classes'; got 'many'"),
        ("evaluate.memory", "lots", "must be an amount of memory such as 8GiB or 512MiB; got 'lots'"),
        ("name", "a/b", "expected letters, digits, '_', '.' and '-', the first no '.' or '-'; got 'a/b'"),
        ("transform.mean", 3, "expected a list; got 3"),
    ],
)
def test_a_wrong_setting_is_one_sentence_with_what_was_expected_and_given(
    key: str, value: float | list[float | str] | str, text: str
) -> None:
    with pytest.raises(PipelineError) as refused:
        make_pipeline({}, {key: value}, where="here")
    assert str(refused.value) == f"here: 1 setting is wrong:\n  {key}: {text}"


def test_of_a_checksum_a_mismatch_shows_twelve_digits() -> None:
    def manifest(digest: str) -> Manifest:
        split = SplitInfo(num_rows=1, class_names=("a",), listing=digest * 64)
        return Manifest(
            made_from={"weights": {"sha256": digest * 64}}, dtype="float32", compression="none", rows_per_chunk=1,
            splits={"train": split, "val": split}, notes={},
        )  # fmt: skip

    faults = differences(manifest("a"), manifest("b"))
    assert f'weights.sha256: it has "{"a" * 12}...", you ask for "{"b" * 12}..."' in faults
    assert not any("a" * 13 in fault for fault in faults)


def test_a_setting_within_one_that_is_given_as_a_value_is_refused(bench: Bench) -> None:
    refused = bench("extract", "digits", "store.dtype=float16", "--store", "mine", "--dry-run")
    assert refused.returncode == 2
    assert "store.dtype: store has no settings of its own; it is mine" in refused.stderr
    both = bench("extract", "digits", "model.options={a: 1}", "model.options.b=2", "--dry-run")
    assert yaml.safe_load(both.stdout)["model"]["options"] == {"a": 1, "b": 2}
