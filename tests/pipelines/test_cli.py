"""The command line as a newcomer uses it: real processes, real files, exit codes."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from featbench.extract.model.trunks import build_trunk
from featbench.store import FeatureSet, StoreError
from tests.conftest import Bench, Records, save_image

MODEL = ("model.trunk=squeezenet1_1", "transform.resize=64", "transform.crop=64", "--workers", "0")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(build_trunk("squeezenet1_1", {}, seed=4).state_dict(), path)
    return path


@pytest.fixture
def extract(bench: Bench, photographs: Path, weights: Path) -> Bench:
    def run(
        *arguments: str, layers: str = "features.5,features.12", name: str = "mine"
    ) -> subprocess.CompletedProcess[str]:
        return bench(
            "extract", "folder", "--data", photographs, "--weights", weights, "--layers", layers, "--name", name,
            *MODEL, *arguments,
        )  # fmt: skip

    return run


def failure(result: subprocess.CompletedProcess[str], *parts: str) -> str:
    """One message for the user, exit code 2, no traceback."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr, result.stderr
    return result.stderr


def test_the_two_commands_without_arguments_run_the_digits(bench: Bench, records: Records, tmp_path: Path) -> None:
    first = bench("extract", "data.limit=400", "--layers", "res4,res5")
    assert first.returncode == 0
    assert "No pipeline was named, so this is digits" in first.stderr
    found = records("--k", "20")
    knn = [record for record in found if record["task"] == "knn"]
    assert [(record["layer"], record["k"], record["temperature"]) for record in knn] == [
        ("res4", 20, 0.07),
        ("res5", 20, 0.07),
    ]
    for record in knn:
        assert record["weights"] == "random (seed 0)"
        assert 0.5 < record["top1_low"] <= record["top1"] <= record["top1_high"] <= 1
        assert record["top1"] <= record["top5"]
    assert len(list((tmp_path / "features/digits/results").glob("2*.json"))) == 1
    table = bench("evaluate", "--k", "20")
    assert "random (seed 0)" in table.stdout
    assert "NMI" in table.stdout
    assert "preprocessed" not in table.stderr, "the default protocol was not asked for by name"
    assert "resize 64, not 256" in bench("evaluate", "--k", "20", "--protocol", "dino").stderr


def test_bench_yaml_of_the_working_folder_is_taken_if_there_is_one(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "bench.yaml").write_text("name: own\ndata: {source: digits}\nmodel: {trunk: nosuch}\n")
    failure(bench("extract"), "unknown trunk 'nosuch'")


def test_photographs_and_weights_of_ones_own_end_to_end(
    extract: Bench, records: Records, bench: Bench, tmp_path: Path
) -> None:
    first = extract()
    assert first.returncode == 0, first.stderr
    assert "52 tensors loaded" in first.stderr
    found = records("--features", "mine", "--k", "1,3", "--temperature", "0.07,0.1", "--clusters", "classes")
    assert len([record for record in found if record["task"] == "knn"]) == 8
    assert {record["layer"] for record in found} == {"features.5", "features.12"}
    group = zarr.open(str(tmp_path / "features/mine"), mode="r")
    assert group["train/features.12"].shape == (12, 512)
    assert list(group["val/paths"][:2]) == ["val/cat/000.jpg", "val/cat/001.jpg"]
    assert bench("verify", "mine").stdout.endswith("chunks\n")
    assert "mine" in bench("ls").stdout
    assert "features.12" in bench("info", "mine").stdout


def test_features_do_not_depend_on_workers_or_on_being_resumed(extract: Bench, tmp_path: Path) -> None:
    extract(name="plain")
    extract("--workers", "2", name="workers")
    extract(name="resumed")
    path = tmp_path / "features/resumed"
    journal = path / "journals/rank-00000.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-2]) + lines[-2][:20])
    shutil.rmtree(path / "train/features.12/c")
    assert "Extracted features.5, features.12: 12 images" in extract(name="resumed").stderr
    contents = [
        {file.relative_to(root): file.read_bytes() for file in sorted(root.rglob("c/**/*")) if file.is_file()}
        for root in (tmp_path / "features" / name for name in ("plain", "workers", "resumed"))
    ]
    assert contents[0] == contents[1] == contents[2]


def test_nothing_new_does_nothing_and_one_more_layer_computes_only_that(extract: Bench, tmp_path: Path) -> None:
    extract(layers="features.12")
    chunk = tmp_path / "features/mine/train/features.12/c/0/0"
    written = chunk.stat().st_mtime_ns
    again = extract(layers="features.12")
    assert again.returncode == 0
    assert "Nothing to do" in again.stderr
    more = extract(layers="features.12,features.3:AdaptiveAvgPool2d(2)")
    assert "Extracted features.3.AdaptiveAvgPool2d_2: 19 images" in more.stderr
    assert chunk.stat().st_mtime_ns == written
    features = FeatureSet.open(tmp_path / "features/mine")
    assert features.layer_info("features.3.AdaptiveAvgPool2d_2").shape == (128, 2, 2)


def test_evaluate_takes_layers_as_extract_does(extract: Bench, records: Records) -> None:
    extract(layers="features.3:AdaptiveAvgPool2d(2)")
    layer = "features.3:AdaptiveAvgPool2d(2)"
    (record,) = records("--features", "mine", "--layers", f"{layer},{layer}", "--k", "1")
    assert record["dim"] == 512


def test_evaluate_works_without_torch_and_without_the_images(
    extract: Bench, bench_process: Bench, photographs: Path, tmp_path: Path
) -> None:
    extract()
    shutil.rmtree(photographs)
    blocked = tmp_path / "blocked/torch"
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text("raise ImportError('torch is not to be had')")
    from tests.conftest import ROOT

    env = {"PYTHONPATH": f"{blocked.parent}:{ROOT}"}
    result = bench_process("evaluate", "--features", "mine", "--k", "1,3", "--json", env=env)
    assert result.returncode == 0, result.stderr
    assert "torch is not to be had" in bench_process("extract", "digits", env=env).stderr, "the block works"


def test_json_on_stdout_is_nothing_but_json(extract: Bench, bench: Bench) -> None:
    extract()
    result = bench("evaluate", "--features", "mine", "--k", "1", "--json")
    parsed = json.loads(result.stdout)
    for name in (
        "layer",
        "protocol",
        "k",
        "temperature",
        "top1",
        "top5",
        "top1_low",
        "top1_high",
        "top5_low",
        "top5_high",
    ):
        assert name in parsed[0]


def test_other_settings_under_the_same_name_are_refused_and_nothing_changes(extract: Bench, tmp_path: Path) -> None:
    extract()
    before = {path: path.read_bytes() for path in (tmp_path / "features").rglob("*") if path.is_file()}
    failure(extract("transform.crop=48"), "transform.crop: it has 64, you ask for 48", "--name", "--overwrite")
    assert {path: path.read_bytes() for path in (tmp_path / "features").rglob("*") if path.is_file()} == before
    assert extract("transform.crop=48", "--overwrite").returncode == 0
    assert FeatureSet.open(tmp_path / "features/mine").manifest.made_from["transform"]["crop"] == 48


def test_an_unreadable_image_stops_the_run_by_name_or_is_left_out(
    extract: Bench, photographs: Path, records: Records, tmp_path: Path
) -> None:
    broken = photographs / "train/dog's/001.jpg"
    broken.write_bytes(broken.read_bytes()[:100])
    failure(extract(), str(broken), "--on-error skip")
    skipped = extract("--on-error", "skip")
    assert skipped.returncode == 0, skipped.stderr
    assert "left out of every evaluation: 1" in skipped.stderr
    features = FeatureSet.open(tmp_path / "features/mine")
    assert np.flatnonzero(~features.valid("train")).tolist() == [6]
    assert features.paths("train")[6] == "train/dog's/001.jpg"
    record = records("--features", "mine", "--k", "1", "--layers", "features.12")[0]
    assert (record["num_train"], record["num_left_out"]) == (11, 1)


def test_a_chunk_in_which_no_image_can_be_read_is_skipped_too(
    extract: Bench, photographs: Path, tmp_path: Path
) -> None:
    for path in photographs.glob("val/*/*"):
        path.write_bytes(b"")
    result = extract("--on-error", "skip")
    assert result.returncode == 0, result.stderr
    assert not FeatureSet.open(tmp_path / "features/mine").valid("val").any()


def test_random_weights_are_asked_for_and_said(
    bench: Bench, photographs: Path, records: Records, tmp_path: Path
) -> None:
    base = ("extract", "folder", "--data", photographs, "--layers", "features.5", *MODEL)
    failure(bench(*base), "no weights", "--weights FILE", "--random-weights SEED")
    assert bench(*base, "--random-weights", "7").returncode == 0
    assert records("--features", "folder", "--k", "1")[0]["weights"] == "random (seed 7)"
    failure(bench(*base, "--random-weights", "8"), "weights.seed: it has 7, you ask for 8")


def test_weights_that_do_not_fit_are_refused_before_anything_is_written(
    bench: Bench, photographs: Path, weights: Path, tmp_path: Path
) -> None:
    state = torch.load(weights)
    torch.save({f"odd.{name}": value for name, value in state.items()}, tmp_path / "wrapped.pth")
    base = ("extract", "folder", "--data", photographs, "--layers", "features.5", *MODEL)
    result = bench(*base, "--weights", "wrapped.pth")
    failure(result, "0 of its 52 parameters and buffers were matched", "weights.remove_prefix=odd.")
    assert not (tmp_path / "features").exists()
    fixed = bench(*base, "--weights", "wrapped.pth", "weights.remove_prefix=odd.")
    assert fixed.returncode == 0, fixed.stderr


def test_poolings_in_yaml_as_vissl_writes_them(bench: Bench, photographs: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        f"""
name: own
data: {{source: folder, root: {json.dumps(str(photographs))}}}
model: {{trunk: squeezenet1_1}}
weights: {{file: {weights}}}
transform: {{resize: 64, crop: 64}}
layers: [["features.5", ["AvgPool2d", [[3, 3], 2, 1]]], ["features.5", ["AdaptiveMaxPool2d", [[2, 2]]]], features.5]
extract: {{batch_size: 5, workers: 0}}
"""
    )
    assert bench("extract", "own.yaml").returncode == 0
    features = FeatureSet.open(tmp_path / "features/own")
    assert {name: info.shape for name, info in features.manifest.layers.items()} == {
        "features.5.AvgPool2d_3_2_1": (128, 4, 4),
        "features.5.AdaptiveMaxPool2d_2": (128, 2, 2),
        "features.5": (128,),
    }
    assert features.manifest.rows_per_chunk == 12  # the whole split: less than three batches


def test_half_precision_storage_takes_half_the_space(extract: Bench, tmp_path: Path) -> None:
    extract(name="single")
    extract("--dtype", "float16", name="half")
    single, half = (FeatureSet.open(tmp_path / "features" / name) for name in ("single", "half"))
    assert np.allclose(single.layer("val", "features.12").read(), half.layer("val", "features.12").read(), rtol=1e-3)
    size = [(tmp_path / f"features/{name}/val/features.12/c/0/0").stat().st_size - 4 for name in ("single", "half")]
    assert size[0] == 2 * size[1]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["extract", "foldr"], ["no pipeline 'foldr'", "Did you mean folder"]),
        (["extract", "digits", "model.trnk=x"], ["model.trnk: no such setting. Did you mean model.trunk"]),
        (["extract", "digits", "model.trunk=resnet19"], ["unknown trunk 'resnet19'", "resnet18"]),
        (["extract", "digits", "--layers", "res9"], ["no tap 'res9'", "res5"]),
        (["extract", "digits", "--layers", "res5:AvgPol2d(2)"], ["unknown pooling 'AvgPol2d'", "AvgPool2d"]),
        (["extract", "digits", "--layers", "res5:AvgPool2d(9)"], ["at least 9 x 9; it is 2 x 2"]),
        (["extract", "digits", "extract.batch_size=0", "storage.dtype=int8", "name=a/b"],
         ["3 settings are wrong", "extract.batch_size", "storage.dtype", "name"]),
        (["extract", "digits", "storage.rows_per_chunk=100"], ["multiple of extract.batch_size", "100 and 64"]),
        (["extract", "digits", "--device", "cuda:99"], ["'cuda:99' can't be used", "--device cpu"]),
        (["extract", "digits", "--weights", "missing.pth"], ["missing.pth: no such file"]),
        (["extract", "digits", "--weights", "IMAGENET1K_V9"], ["no weights 'IMAGENET1K_V9'", "IMAGENET1K_V1"]),
        (["extract", "digits", "nonsense"], ["'nonsense' is neither a pipeline nor an override"]),
        (["evaluate", "digits"], ["no such feature set", "bench extract"]),
        (["evaluate", "digits", "--k", "0"], ["evaluate.knn.k: must be positive"]),
        (["evaluate", "digits", "--k", "ten"], ["evaluate.knn.k", "ten"]),
        (["evaluate", "digits", "--temperature", "-1"], ["evaluate.knn.temperature: must be positive"]),
        (["evaluate", "digits", "--protocol", "dyno"], ["unknown protocol 'dyno'", "dino"]),
        (["evaluate", "digits", "--clusters", "many"], ["evaluate.kmeans.clusters"]),
        (["evaluate", "digits", "--k", "["], ["not YAML"]),
        (["evaluate", "digits", "--k", "true"], ["evaluate.knn.k: must be numbers"]),
        (["evaluate", "digits", "model.trunk=resnet50"], ["model.trunk: not a setting of stage two"]),
        (["extract", "digits", "--layers", "res5:AvgPool2d(--5)"], ["not a number"]),
        (["extract", "digits", "--layers", "zarr.json=res5"], ["cannot be the name"]),
        (["extract", "digits", "transform.resize=-1"], ["1 setting is wrong", "transform.resize: "]),
        (["extract", "digits", "model.options.num_classes=-1"], ["cannot be built with model.options"]),
        (["extract", "digits", "--device", "meta"], ["expected cpu, cuda or mps"]),
        (["extract", "digits", "--store", "/proc/nope"], ["cannot write"]),
        (["extract", "digits", "--val-split", "train"], ["its own neighbour"]),
        (["layers", "vit_b_16", "--image-size", "100"], ["images of 100 x 100 pixels"]),
        (["ls", "--store", "nowhere"], ["nowhere: no such folder"]),
        (["import", "--name", "../x", "--dino", "."], ["trainfeat.pth"]),
        (["import", "--name", "x"], ["say what to import"]),
        (["verify", "nothing"], ["no such feature set"]),
        (["layers", "resnet51"], ["unknown trunk"]),
    ],
)  # fmt: skip
def test_bad_input_is_one_message_with_the_way_on(bench: Bench, arguments: list[str], parts: list[str]) -> None:
    failure(bench(*arguments), *parts)


def test_evaluate_refuses_what_the_features_do_not_allow(extract: Bench, bench: Bench, photographs: Path) -> None:
    extract()
    failure(bench("evaluate", "--features", "mine", "--k", "13"), "k must be in [1, 12]")
    failure(bench("evaluate", "--features", "mine", "--layers", "features.13"), "Did you mean features.12")
    failure(bench("evaluate", "--features", "mime"), "Did you mean mine")
    failure(bench("evaluate", "--features", "mine", "--clusters", "13"), "clusters must be in [1, 12]")


def test_an_incomplete_layer_is_refused_with_the_cure(extract: Bench, bench: Bench, tmp_path: Path) -> None:
    extract()
    journal = tmp_path / "features/mine/journals/rank-00000.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-2]))
    refused = bench("evaluate", "--features", "mine")
    failure(refused, "incomplete", "Run the same `bench extract` command again")
    assert "--repair" not in refused.stderr


@pytest.mark.parametrize("options", [(), ("--repair",)])
def test_an_unfinished_set_is_not_called_damaged(
    extract: Bench, bench: Bench, tmp_path: Path, options: tuple[str, ...]
) -> None:
    extract()
    journal = tmp_path / "features/mine/journals/rank-00000.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]))
    found = bench("verify", "mine", *options)
    assert found.returncode == 3
    assert f"unfinished, not damaged: {len(lines) - 1} of {len(lines)} chunks are written" in found.stderr
    assert "Run the same `bench extract` command again" in found.stderr
    chunk = tmp_path / "features/mine/train/labels/c/0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    failure(bench("verify", "mine"), "faults found: 1", "train/labels chunk 0", "pending")


def test_damage_is_found_and_repaired(extract: Bench, bench: Bench, tmp_path: Path) -> None:
    extract()
    chunk = tmp_path / "features/mine/train/features.5/c/0/0"
    content = chunk.read_bytes()
    chunk.write_bytes(content[:50] + bytes([content[50] ^ 4]) + content[51:])
    failure(bench("verify", "mine"), "train/features.5 chunk 0", "--repair")
    failure(bench("evaluate", "--features", "mine"), "train/features.5, chunk 0", "bench verify")
    assert "Repaired, or marked as pending: 1" in bench("verify", "mine", "--repair").stdout
    assert "Extracted features.5: 12 images" in extract().stderr
    assert chunk.read_bytes() == content
    assert "no faults" in bench("verify", "mine").stdout


@pytest.mark.root
def test_a_disk_that_fills_up_stops_the_run_and_space_resumes_it_with_the_same_bytes(
    bench: Bench, tmp_path: Path
) -> None:
    """A tmpfs that is too small, then larger."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", small], check=True)
    try:
        command = ("extract", "digits", "--layers", "res4,res5", "storage.rows_per_chunk=64", "--store")
        failure(bench(*command, small), "No space left on device", "What was committed before is safe")
        assert not list(small.rglob("*.partial"))
        committed = len(FeatureSet.open(small / "digits").records)
        subprocess.run(["mount", "-o", "remount,size=64m", small], check=True)
        resumed = bench(*command, small)
        assert resumed.returncode == 0, resumed.stderr
        assert "1,797 images" not in resumed.stderr, "it does not begin again"
        assert committed > 10
        assert bench(*command, tmp_path / "whole").returncode == 0
        for path in (tmp_path / "whole").rglob("c/**/*"):
            if path.is_file():
                assert (small / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
    finally:
        gc.collect()  # a feature set that was opened holds its folder
        subprocess.run(["umount", small], check=True)


def test_other_images_under_the_same_names_are_refused(extract: Bench, photographs: Path) -> None:
    extract()
    save_image(photographs / "train/cat/000.jpg", seed=77, size=(90, 80))
    failure(extract(), "data.train.listing")


def test_images_of_different_sizes_are_refused_though_pooling_would_hide_them(extract: Bench) -> None:
    failure(extract("transform.crop=null", "--batch-size", "1"), "pixels after the transform", "transform.crop")


def test_a_store_that_can_only_be_read_still_gives_its_numbers(
    extract: Bench, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract()
    from featbench.store import durable

    def refuse(path: Path, content: bytes) -> None:
        raise StoreError(durable.cannot_write(path, OSError(30, "Read-only file system")))

    monkeypatch.setattr("featbench.store.durable.write_durably", refuse)
    monkeypatch.setattr("featbench.store.feature_set.write_durably", refuse)
    result = bench("evaluate", "--features", "mine", "--k", "1")
    assert result.returncode == 0, result.stderr
    assert "not kept" in result.stderr
    assert "features.12" in result.stdout


def test_weights_of_torchvision_bring_their_transform_and_options() -> None:
    from featbench.pipelines.config.pipeline import make_pipeline
    from featbench.pipelines.extraction.building import model_options
    from featbench.pipelines.extraction.transforming import choose_transform

    settings = {"model": {"trunk": "efficientnet_b0"}, "weights": {"torchvision": "DEFAULT"}}
    transform, origin = choose_transform(make_pipeline(dict(settings), where=""))
    assert transform.interpolation == "bicubic"
    assert origin == ""  # the name of the weights says it
    own = make_pipeline(dict(settings), {"transform.rounding": "nearest", "transform.crop": 200}, where="")
    transform, _ = choose_transform(own)
    assert (transform.interpolation, transform.rounding, transform.crop) == ("bicubic", "nearest", 200)
    inception = make_pipeline({"model": {"trunk": "inception_v3"}, "weights": {"torchvision": "DEFAULT"}}, where="")
    assert model_options(inception) == {"transform_input": True}
    assert choose_transform(inception)[0].crop == 299


def test_taps_and_models_are_listed(bench: Bench) -> None:
    taps = bench("layers", "resnet18", "--image-size", "64").stdout
    assert "layer3" in taps
    assert "res4" in taps
    assert "resnet50" in bench("models").stdout.split()


def test_help_lists_the_commands(bench_process: Bench) -> None:
    out = bench_process("--help").stdout
    for command in ("extract", "evaluate", "run", "import", "verify", "ls", "info", "layers", "models"):
        assert command in out


def test_the_interpreter_looks_for_no_cycles_at_exit() -> None:
    code = """
import atexit, gc, sys
from featbench.__main__ import main

atexit.register(lambda: print(gc.get_freeze_count() > 0))
sys.argv = ["bench", "--version"]
main()
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.splitlines()[-1] == "True", ran.stderr


def test_run_does_both_stages_and_only_what_is_missing(bench: Bench, photographs: Path, weights: Path) -> None:
    arguments = (
        "run",
        "folder",
        "--data",
        photographs,
        "--weights",
        weights,
        "--layers",
        "features.5",
        "--k",
        "1,2",
        *MODEL,
    )
    first = bench(*arguments, "--json")
    assert first.returncode == 0, first.stderr
    again = bench(*arguments, "--json")
    assert "Nothing to do" in again.stderr
    before, after = json.loads(first.stdout), json.loads(again.stdout)
    assert [record["top1"] for record in before] == [record["top1"] for record in after]
    assert all(record["neighbours_reused"] for record in after)


def test_a_photograph_with_an_odd_name_keeps_it(extract: Bench, photographs: Path, tmp_path: Path) -> None:
    save_image(photographs / "train/cat" / 'a "quote", a\nnewline and a tab\t.jpg')
    assert extract().returncode == 0
    assert 'train/cat/a "quote", a\nnewline and a tab\t.jpg' in FeatureSet.open(tmp_path / "features/mine").paths(
        "train"
    )
