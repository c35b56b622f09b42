"""`bench neighbours`: of val images from kept lists or a search, of any file by the model; wrong input is refused."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from featbench.pipelines.config.pipeline import load_pipeline
from featbench.pipelines.extraction import computing
from featbench.pipelines.extraction.computing import form_of
from featbench.pipelines.extraction.rebuilding import read_alike, rebuild
from featbench.pipelines.extraction.run import extract
from featbench.store import FeatureSet
from tests.conftest import Bench, make_features, save_image

CLASSES = ("boots", "boots [red]x", "émeu <b>")
LAYERS = "features.6", "features.12"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs, weights of a SqueezeNet, and the features of two layers."""
    folder = tmp_path_factory.mktemp("made")
    for split, count in (("train", 12), ("val", 6)):
        for number in range(count):
            seed = number + 100 * (split == "val")
            save_image(folder / f"photos/{split}/{CLASSES[number % 3]}/{number:02d}.png", seed=seed, size=(40, 50))
    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1().state_dict(), folder / "weights.pth")
    settings: dict[str, Any] = {
        "name": "mine", "store": str(folder / "features"), "data.root": str(folder / "photos"),
        "model.trunk": "squeezenet1_1", "weights.file": str(folder / "weights.pth"), "layers": list(LAYERS),
        "extract.workers": 0, "extract.device": "cpu", "transform.resize": 40, "transform.crop": 32,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        extract(load_pipeline("folder", settings), quiet=True)
    return folder


@pytest.fixture
def ask(bench: Bench, made: Path) -> Callable[..., dict[str, Any]]:
    """Ask for the neighbours of an image, as JSON."""

    def run(image: object, *more: object) -> dict[str, Any]:
        result = bench("neighbours", made / "features/mine", image, "--json", *more)
        assert result.returncode == 0, result.stderr
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    return run


def brute_force(made: Path, layer: str, row: int) -> tuple[list[int], np.ndarray]:
    """Rows of train by their cosine with a row of val, in float64."""
    features = FeatureSet.open(made / "features/mine")
    train, val = (features.layer(split, layer).read().astype(np.float64) for split in ("train", "val"))
    cosines = train @ val[row] / np.linalg.norm(train, axis=1) / np.linalg.norm(val[row])
    return np.argsort(-cosines, kind="stable").tolist(), np.sort(cosines)[::-1]


def rows_of(answer: dict[str, Any]) -> list[int]:
    return [each["row"] for each in answer["neighbours"]]


def test_a_row_is_found_by_number_path_and_end_and_its_neighbours_are_those_of_float64(
    ask: Callable[..., dict[str, Any]], made: Path, bench: Bench
) -> None:
    features = FeatureSet.open(made / "features/mine")
    paths, labels = features.paths("val"), features.labels("val")
    row = paths.index("val/émeu <b>/02.png")
    rows, cosines = brute_force(made, LAYERS[1], row)
    answers = [ask(name, "-k", 7) for name in (row, paths[row], "b>/02.png", made / "photos" / paths[row])]
    assert bench("evaluate", "--features", "mine", "--store", made / "features", "--k", "9", "--quiet").returncode == 0
    answers.append(ask(row, "-k", 7))
    for answer in answers:
        assert rows_of(answer) == rows[:7]
        assert answer["query"] == {"path": paths[row], "row": row, "label": CLASSES[2]}
        np.testing.assert_allclose([each["similarity"] for each in answer["neighbours"]], cosines[:7], rtol=1e-12)
    assert [answer["how"] for answer in answers[3:]] == ["searched now, exactly", "from the kept lists"]
    assert labels[row] == 2
    classes = [CLASSES[features.labels("train")[each]] for each in rows[:7]]
    weights = np.exp((cosines[:7] - cosines[0]) / 0.07)
    shares = {name: sum(w for w, c in zip(weights, classes, strict=True) if c == name) / sum(weights)
              for name in dict.fromkeys(classes)}  # fmt: skip
    assert answers[0]["votes"] == pytest.approx(shares)
    assert answers[0]["predicted"] == max(shares, key=lambda name: shares[name])
    first = ask(row, "--layer", LAYERS[0], "-k", 3)
    assert rows_of(first) == brute_force(made, LAYERS[0], row)[0][:3]


def test_the_model_run_on_a_copy_of_a_val_file_finds_the_same_neighbours(
    ask: Callable[..., dict[str, Any]], made: Path, tmp_path: Path
) -> None:
    row = 5
    path = FeatureSet.open(made / "features/mine").paths("val")[row]
    copy = shutil.copy(made / "photos" / path, tmp_path / f"a 'copy' {row}.png")
    answer, kept = ask(copy), ask(row)
    assert rows_of(answer) == rows_of(kept)
    assert answer["query"] == {"path": str(copy), "row": None, "label": None}
    ours, theirs = ([each["similarity"] for each in of["neighbours"]] for of in (answer, kept))
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    assert answer["votes"] == pytest.approx(kept["votes"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["folded", "weights"])
def test_the_model_runs_in_the_form_and_precision_that_the_features_have(
    form: str, bench: Bench, made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Batch norms folded and autocast to bfloat16; or weights in bfloat16, as if measured to be faster."""
    if form == "weights":
        monkeypatch.setattr(computing, "SHORT_S", 0.0)
        monkeypatch.setattr(computing, "MUCH_FASTER", 0.0)
    extracted = bench(
        "extract", "folder", "--data", made / "photos", "model.trunk=resnet18", "--random-weights", 0, "--name", "low",
        "--layers", "res3", "--precision", "bfloat16", "--device", "cpu", "transform.resize=40", "transform.crop=32",
        "extract.workers=0", "--quiet",
    )  # fmt: skip
    assert extracted.returncode == 0, extracted.stderr
    features = FeatureSet.open(tmp_path / "features/low")
    assert form_of(features.manifest, "res3") == form
    model = rebuild(features, "res3", device="cpu")
    for row in (0, 4):
        ours = model(read_alike(features, made / "photos" / features.paths("val")[row])).ravel()
        stored = features.layer("val", "res3").read()[row]
        assert np.linalg.norm(ours - stored) <= 2e-2 * np.linalg.norm(stored)  # a batch of one rounds otherwise


def test_a_train_image_is_left_out_of_its_own_list(ask: Callable[..., dict[str, Any]], made: Path) -> None:
    answer = ask("train/boots/00.png", "--leave-one-out", "-k", 11)
    assert sorted(rows_of(answer)) == list(range(1, 12))
    as_file = ask(made / "photos/train/boots/00.png", "-k", 1)
    assert (rows_of(as_file), as_file["neighbours"][0]["similarity"]) == ([0], pytest.approx(1, abs=1e-6))


def test_the_table_says_the_vote_and_escapes_names(bench: Bench, made: Path) -> None:
    result = bench("neighbours", made / "features/mine", 0, "-k", 4)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "mine: neighbours by layer features.12"
    assert lines[1].split() == ["rank", "similarity", "class", "same", "class", "row", "path"]
    assert [line.split()[0] for line in lines[2:6]] == ["1", "2", "3", "4"]
    assert lines[6] == "Query: val/boots/00.png, row 0, class boots."
    assert lines[7].startswith("Vote: ")
    assert "k = 4, T = 0.07" in lines[8]


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("02.pgn", "Did you mean val/émeu <b>/02.png"),
        ("''", "name the image that is asked about"),
        ("train/boots/03.png", "It is an image of train: ask about it with --leave-one-out"),
        (".png", "6 images of val have a path that ends so"),
        ("17", "val has 6 rows, numbered from 0; got 17"),
        ("0 -k 13", "-k must be in [1, 12], the images of train; got 13"),
        ("0 --layer features.6,features.12", "the neighbours are those of one layer"),
        ("0 --protocol dino,vissl", "--protocol: one for the vote; got dino, vissl"),
        ("0 --temperature 0.05,0.07", "--temperature: one for the vote; got 0.05, 0.07"),
        ("0 --layer features.7", "no layer 'features.7'"),
        ("{folder}/text.jpg", "not an image of a known kind"),
        ("{folder}/empty.jpg", "it is empty (0 bytes)"),
        ("{folder}", "a folder, not a regular file"),
        ("0 -o x.xyz", "the name of a picture must end in .png"),
        ("0 -o x.pdf", "the name of a picture must end in .png"),
        ("{folder}/other.png --weights {folder}/gone.pth", "gone.pth: the weights that"),
        ("{folder}/other.png --weights {folder}/other.pth", "its model is another one now"),
    ],
)
def test_what_can_not_be_answered_is_refused(image: str, said: str, bench: Bench, made: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.jpg").touch()
    save_image(tmp_path / "other.png", seed=3)
    if "other.pth" in image:
        torch.manual_seed(1)
        torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "other.pth")
    result = bench("neighbours", made / "features/mine", *shlex.split(image.format(folder=tmp_path)))
    assert (result.returncode, result.stdout) == (2, "")
    assert said in result.stderr


@pytest.fixture
def own(bench: Bench, photographs: Path, tmp_path: Path) -> Path:
    """Features of a model of the user's own code, which leaves a mark where it runs."""
    (tmp_path / "own.py").write_text(
        "import pathlib, torch\n\ndef make():\n    pathlib.Path('ran').touch()\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())\n"
    )
    made = bench("extract", "folder", "--data", photographs, "model.trunk=own.py:make", "--random-weights", "1",
                 "--layers", "0", "transform.resize=32", "transform.crop=32", "extract.workers=0", "--name", "own",
                 "--quiet")  # fmt: skip
    assert made.returncode == 0, made.stderr
    (tmp_path / "ran").unlink()
    return save_image(tmp_path / "other.png", seed=3)


def test_code_of_a_feature_set_runs_only_if_it_is_trusted(own: Path, bench: Bench, tmp_path: Path) -> None:
    refused = bench("neighbours", "own", own)
    assert (refused.returncode, (tmp_path / "ran").exists()) == (2, False)
    assert "--trust-code" in refused.stderr


@pytest.mark.slow
def test_code_that_has_changed_or_is_gone_is_refused(own: Path, bench: Bench, tmp_path: Path) -> None:
    assert bench("neighbours", "own", own, "--trust-code").returncode == 0
    (tmp_path / "own.py").write_text((tmp_path / "own.py").read_text().replace("3, 6, 3", "3, 6, 3, 2"))
    changed = bench("neighbours", "own", own, "--trust-code")
    assert changed.returncode == 2
    assert "model.code_sha256" in changed.stderr
    (tmp_path / "own.py").unlink()
    gone = bench("neighbours", "own", own, "--trust-code")
    assert gone.returncode == 2
    assert "own.py:make: the code of the model that" in gone.stderr


def test_imported_features_have_neighbours_of_rows_but_no_model(bench: Bench, arrays: Any, tmp_path: Path) -> None:
    make_features(tmp_path / "features/given", *arrays)
    assert bench("neighbours", "given", "val/3.jpg", "--layer", "res4").returncode == 0
    refused = bench("neighbours", "given", save_image(tmp_path / "other.png"))
    assert refused.returncode == 2
    assert "it was imported, so it has features but no model" in refused.stderr
    drawn = bench("neighbours", "given", 3, "-o", "sheet.png")
    assert drawn.returncode == 0, drawn.stderr
    assert "11 of 11 images can't be shown; the first: the features were not extracted by bench" in drawn.stderr


def test_rows_of_several_classes_are_listed_with_all_of_them(bench: Bench, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        labels = np.array([[1, 0, 1], [0, 0, 0], [0, 1, -1]])
        np.savez(tmp_path / f"{split}.npz", features=random.normal(size=(3, 4)).astype(np.float32), labels=labels)
    words = ("--train", tmp_path / "train.npz", "--val", tmp_path / "val.npz", "--name", "several", "--multi-label")
    assert bench("import", *words).returncode == 0
    answer = json.loads(bench("neighbours", "several", 0, "-k", 3, "--json").stdout)
    assert answer["query"]["label"] == "0; 2"
    assert {each["row"]: each["label"] for each in answer["neighbours"]} == {0: "0; 2", 1: None, 2: "1"}
    assert (answer["votes"], answer["predicted"], answer["is_right"]) == ({}, None, None)


def test_the_picture_has_the_images_framed_by_whether_their_class_is_right(
    bench: Bench, made: Path, tmp_path: Path
) -> None:
    result = bench("neighbours", made / "features/mine", 0, "-k", 3, "-o", tmp_path / "sheet.png", "--json")
    assert result.returncode == 0, result.stderr
    same = [each["same_class"] for each in json.loads(result.stdout)["neighbours"]]
    sheet = Image.open(tmp_path / "sheet.png").convert("RGB")
    cells = [28 + 216 * (number + 1) for number in range(3)]
    frames = [sheet.getpixel((left + 2, 34 + 100)) for left in cells]
    assert frames == [(0x1A, 0x7F, 0x37) if is_right else (0xC9, 0x37, 0x2C) for is_right in same]
    paths = [each["path"] for each in json.loads(result.stdout)["neighbours"]]
    for left, path in zip(cells, paths, strict=True):
        photo = Image.open(made / "photos" / path).convert("RGB")
        ours = sheet.crop((left + 5 + 19, 34 + 5, left + 5 + 19 + 154, 34 + 5 + 192)).resize((8, 10))
        apart = np.abs(np.asarray(ours, int) - np.asarray(photo.resize((8, 10)), int))
        assert apart.mean() < 12
    moved = bench("neighbours", made / "features/mine", 0, "-k", 3, "-o", tmp_path / "gone.png", "--images", tmp_path)
    assert moved.returncode == 0
    assert "4 of 4 images can't be shown" in moved.stderr
