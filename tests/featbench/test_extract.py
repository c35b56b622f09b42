"""`featbench.extract`: features of a model in memory, into a store and into memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import featbench
from featbench.store import FeatureSet, verify
from featbench.store.typing import Floats


class Net(nn.Module):
    """A small network with batch norm, dropout and a classifier, of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5))
        self.fc = nn.Linear(6, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(images).mean(dim=(2, 3)))


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    made = Net()
    made(torch.rand(16, 1, 8, 8))  # running statistics that are not the initial ones
    return made


@pytest.fixture
def data() -> dict[str, TensorDataset]:
    random = torch.Generator().manual_seed(1)
    return {
        split: TensorDataset(torch.rand(num, 1, 8, 8, generator=random), torch.arange(num) % 4)
        for split, num in (("train", 50), ("val", 21))
    }


def expected(model: torch.nn.Module, dataset: TensorDataset) -> dict[str, Floats]:
    """Pooled features of the whole dataset at once, in eval mode."""
    was, images = model.training, dataset.tensors[0]
    model.eval()
    with torch.no_grad():
        maps = model.body(images)
        features = {"body": maps.mean(dim=(2, 3)), "fc": model.fc(maps.mean(dim=(2, 3)))}
    model.train(was)
    return {name: values.numpy() for name, values in features.items()}


def test_features_in_memory_are_those_of_the_model_in_eval_mode(
    model: torch.nn.Module, data: dict[str, TensorDataset]
) -> None:
    model.train()
    model.body[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    features = featbench.extract(model, data, layers=["body", "fc"])
    assert [module.training for module in (model, model.body[1], model.body[3])] == [True, False, True]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    for split, dataset in data.items():
        for layer, values in expected(model, dataset).items():
            assert np.allclose(features[f"{split}/{layer}"], values, atol=1e-6)
        assert features.labels(split).tolist() == dataset.tensors[1].tolist()
    result = featbench.knn(features, layers="body", k=5)
    arrays = [features["train/body"], data["train"].tensors[1], features["val/body"], data["val"].tensors[1]]
    assert result.top1 == featbench.knn(*arrays, k=5).top1


def test_the_mode_is_put_back_after_an_error(model: torch.nn.Module, data: dict[str, TensorDataset]) -> None:
    model.train()
    with pytest.raises(featbench.BenchError, match=r"no tap 'bodi'.*Did you mean body"):
        featbench.extract(model, data, layers="bodi")
    assert model.training


def test_features_in_a_store_are_the_same_and_verify_clean(
    model: torch.nn.Module, data: dict[str, TensorDataset], tmp_path: Path
) -> None:
    memory = featbench.extract(model, data, layers="body,fc")
    stored = featbench.extract(model, data, layers="body,fc", store=tmp_path, name="live")
    for key in memory:
        assert np.allclose(stored[key], memory[key], atol=1e-6)
    assert stored.class_names == ("0", "1", "2", "3")
    assert not list(verify(tmp_path / "live"))
    assert featbench.knn(stored, layers="fc", k=5).top1 == featbench.knn(memory, layers="fc", k=5).top1


def test_the_same_call_does_what_is_missing(
    model: torch.nn.Module, data: dict[str, TensorDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after two chunks, it goes on; a layer is added; a third call computes nothing."""
    monkeypatch.setattr("featbench.extract.live.rows_per_chunk_for", lambda **_: 16)
    computed = []
    forward = Net.forward

    def counting(self: Net, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 2:  # no probe
            computed.append(len(images))
            if len(computed) == 3:
                raise KeyboardInterrupt
        return forward(self, images)

    monkeypatch.setattr(Net, "forward", counting)
    settings = {"store": tmp_path, "name": "live", "batch_size": 16}
    with pytest.raises(KeyboardInterrupt):
        featbench.extract(model, data, layers="body", **settings)
    assert model.training
    features = featbench.extract(model, data, layers="body", **settings)
    assert sum(computed) - computed[2] == 71 - 2, "the last chunk of train has as few images as the probe"
    assert np.allclose(features["train/body"], expected(model, data["train"])["body"], atol=1e-6)
    with_fc = featbench.extract(model, data, layers="body,fc", **settings)
    assert with_fc.layers == ("body", "fc")
    computed.clear()
    featbench.extract(model, data, layers="body,fc", **settings)
    assert not computed


def test_another_model_or_other_images_are_refused(
    model: torch.nn.Module, data: dict[str, TensorDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"layers": "body", "store": tmp_path, "name": "live"}
    before = featbench.extract(model, data, **settings)
    values, fingerprint = before["val/body"][:], featbench.open(tmp_path / "live").fingerprint
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for changed in ("fc.bias", "body.1.running_mean"):
        model.load_state_dict({**state, changed: state[changed] + 1})
        with pytest.raises(featbench.BenchError, match="weights.state_sha256"):
            featbench.extract(model, data, **settings)
    model.load_state_dict(state)
    other = {**data, "val": TensorDataset(1 - data["val"].tensors[0], data["val"].tensors[1])}
    with pytest.raises(featbench.BenchError, match="val has other images(.|\n)*another name.*with overwrite=True"):
        featbench.extract(model, other, **settings)
    monkeypatch.setattr(Net, "forward", lambda self, images: self.fc(2 * self.body(2 * images).mean(dim=(2, 3))))
    with pytest.raises(featbench.BenchError, match="code has changed"):
        featbench.extract(model, data, **settings)
    assert FeatureSet.open(tmp_path / "live").manifest.fingerprint == fingerprint
    replaced = featbench.extract(model, other, overwrite=True, **settings)
    assert not np.array_equal(replaced["val/body"], values)


def test_a_loader_is_read_in_the_order_of_its_dataset(
    model: torch.nn.Module, data: dict[str, TensorDataset], tmp_path: Path
) -> None:
    loaders = {
        split: DataLoader(dataset, batch_size=8, shuffle=True, drop_last=True) for split, dataset in data.items()
    }
    for store in (None, tmp_path):
        features = featbench.extract(model, loaders, layers="body", store=store, name="live")
        assert np.allclose(features["train/body"], expected(model, data["train"])["body"], atol=1e-6)
        assert features.labels("train").tolist() == data["train"].tensors[1].tolist()


def test_batches_of_any_kind_do_without_a_store(model: torch.nn.Module, data: dict[str, TensorDataset]) -> None:
    batches = {split: list(DataLoader(dataset, batch_size=8)) for split, dataset in data.items()}
    of_generators = {split: iter(each) for split, each in batches.items()}
    for each in (batches, of_generators):
        features = featbench.extract(model, each, layers="body")
        assert np.allclose(features["val/body"], expected(model, data["val"])["body"], atol=1e-6)


def test_labels_and_names_of_classes_come_from_the_dataset(
    model: torch.nn.Module, data: dict[str, TensorDataset], tmp_path: Path
) -> None:
    class Named(Dataset):
        classes = ("ant", "bee", "cat", "dog")

        def __init__(self, pairs: TensorDataset, *, listed: bool) -> None:
            self.pairs = pairs
            if listed:
                self.targets = [int(label) for label in pairs.tensors[1]]

        def __len__(self) -> int:
            return len(self.pairs)

        def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
            return self.pairs[row]

    subset = {"train": Subset(Named(data["train"], listed=True), range(1, 30)), "val": Named(data["val"], listed=False)}
    features = featbench.extract(model, subset, layers="body", store=tmp_path, name="live")
    assert features.class_names == ("ant", "bee", "cat", "dog")
    assert features.labels("train").tolist() == [row % 4 for row in range(1, 30)]
    assert features.labels("val").tolist() == [row % 4 for row in range(21)]


def test_flatten_and_poolings_are_those_of_the_command_line(
    model: torch.nn.Module, data: dict[str, TensorDataset]
) -> None:
    features = featbench.extract(model, data, layers=["flatten", "map=body:AdaptiveMaxPool2d(2)"])
    assert np.allclose(features["train/flatten"], expected(model, data["train"])["body"], atol=1e-6)
    assert features["train/map"].shape == (50, 6, 2, 2)


class Endless(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        return iter(())


class Augmented(Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return torch.rand(1, 8, 8), 0


class Masked(Net):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images * (torch.rand_like(images) > 0.5))


def test_what_cannot_be_extracted_is_refused(
    model: torch.nn.Module, data: dict[str, TensorDataset], tmp_path: Path
) -> None:
    stored = {"layers": "body", "store": tmp_path, "name": "live"}
    with pytest.raises(ValueError, match="keys train and val; got train, test"):
        featbench.extract(model, {"train": data["train"], "test": data["val"]}, layers="body")
    with pytest.raises(ValueError, match="can't be indexed by row"):
        featbench.extract(model, {**data, "val": Endless()}, **stored)
    with pytest.raises(ValueError, match="without random augmentation"):
        featbench.extract(model, {**data, "train": Augmented()}, **stored)
    with pytest.raises(ValueError, match=r"\(C, H, W\)"):
        featbench.extract(model, {**data, "val": TensorDataset(torch.rand(5, 9), torch.zeros(5))}, layers="body")
    with pytest.raises(ValueError, match="name must be"):
        featbench.extract(model, data, layers="body", store=tmp_path)
    for settings, text in (
        ({"dtype": "float64"}, "float32 or float16"),
        ({"batch_size": 0}, "from 1 on; got 0"),
        ({"num_workers": -1}, "from 0 on; got -1"),
    ):
        with pytest.raises(ValueError, match=text):
            featbench.extract(model, data, **stored, **settings)
    with pytest.raises(ValueError, match="Module; got str"):
        featbench.extract("resnet50", data, **stored)
    with pytest.raises(featbench.BenchError, match="other features for the same image"):
        featbench.extract(Masked(), data, layers="body")
    assert not list(tmp_path.iterdir())
