"""A model whose features depend on chance, or on other images of the batch, is refused; what it gives is kept."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from featbench.extract.errors import ModelError
from featbench.extract.model.repeatability import check_repeatable, distance, fixed_images, summaries
from featbench.extract.model.taps import TappedTrunk
from featbench.store.layers import layers_of


class Net(nn.Module):
    def __init__(self, change: Callable[..., Any] = lambda features: features) -> None:
        super().__init__()
        self.conv, self.norm, self.fc, self.last = nn.Conv2d(3, 8, 5, 2), nn.BatchNorm2d(8), nn.Linear(8, 6), nn.ReLU()
        self.change = change

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.fc(self.change(self.norm(self.conv(images)).mean((2, 3)))))


class InTrainingMode(Net):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.train()
        return super().forward(images)


class StatisticsOfTheBatch(Net):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(F.batch_norm(self.conv(images), None, None, training=True).mean((2, 3)))


class Counting(Net):
    """State that a pass changes."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.count = getattr(self, "count", 0) + 1
        return self.fc(self.conv(images).mean((2, 3)) * self.count)


def seldom(features: torch.Tensor) -> torch.Tensor:
    return features * 0.5 if torch.rand(()) < 0.1 else features


def features_of(
    net: torch.nn.Module, images: torch.Tensor, layers: tuple[str, ...] = ("fc",)
) -> dict[str, torch.Tensor]:
    taps = TappedTrunk(net.eval().requires_grad_(False), name="own.py:net", layers=layers_of(layers))
    taps.probe(images[:1])
    return check_repeatable(taps, images)


@pytest.fixture
def images() -> torch.Tensor:
    return fixed_images(32, 32).float() / 255 - 0.5


@pytest.mark.parametrize(
    "change",
    [
        F.dropout,
        seldom,
        lambda features: features * random.random(),
        lambda features: features + torch.from_numpy(np.random.rand(8)).float(),
        lambda features: features[:, torch.randperm(8)],
    ],
)
def test_a_model_that_is_random_in_eval_mode_is_refused(change: Callable[..., Any], images: torch.Tensor) -> None:
    torch.manual_seed(0)
    with pytest.raises(ModelError, match="own.py:net gives other features for the same image in a second forward"):
        features_of(Net(change), images)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda features: features + random.random() / 10, r"differs by [\d.]+% of its norm"),
        (lambda features: features * 10.0 ** (20 * random.random()), r"differs by \S+ times its norm"),
    ],
)
def test_small_differences_are_reported_in_percent_and_large_ones_in_multiples(
    change: Callable[..., Any], text: str, images: torch.Tensor
) -> None:
    torch.manual_seed(0)
    with pytest.raises(ModelError, match=text):
        features_of(Net(change), images)


def test_the_message_says_where_the_random_numbers_are_drawn(images: torch.Tensor) -> None:
    net: Any = Net()
    net.norm = nn.Sequential(nn.Identity(), DropoutForEver())
    with pytest.raises(ModelError, match=r"first difference is in norm\.1\. Random numbers are drawn in norm\.1"):
        features_of(net, images)


class DropoutForEver(nn.Module):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.dropout(features, 0.5)


def test_a_model_changed_by_forward_passes_is_refused(images: torch.Tensor) -> None:
    with pytest.raises(ModelError, match="state that a pass changes"):
        features_of(Counting(), images)


@pytest.mark.parametrize(
    "net", [InTrainingMode, StatisticsOfTheBatch, lambda: Net(lambda f: f - 0.1 * f.mean(0, keepdim=True))]
)
def test_a_model_whose_images_depend_on_each_other_is_refused(
    net: Callable[..., Any] | type[InTrainingMode | StatisticsOfTheBatch], images: torch.Tensor
) -> None:
    torch.manual_seed(0)
    with pytest.raises(ModelError, match="for an image alone than in a batch"):
        features_of(net(), images)


def test_a_repeatable_model_returns_its_features_without_changing_random_states(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    net = Net()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    features = features_of(net, images, ("fc", "last"))
    assert torch.allclose(features["last"], net(images), atol=1e-6)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]


def test_fixed_images_differ_and_never_change() -> None:
    images = fixed_images(30, 40)
    assert images.shape == (2, 3, 30, 40)
    assert images.dtype == torch.uint8
    assert images.float().std() > 20
    assert not torch.equal(images[0], images[1])
    assert int((images.long().flatten() * torch.arange(1, 7201)).sum() % 1_000_003) == CHECKSUM


CHECKSUM = 548297
"""Checksum of the pixels, so that a summary stays comparable with those of earlier versions."""


def test_summaries_measure_how_much_features_have_changed() -> None:
    random_numbers = np.random.default_rng(0)
    old = random_numbers.standard_normal((2, 500)).astype(np.float32)
    step = random_numbers.standard_normal((2, 500)).astype(np.float32)
    before = json.loads(json.dumps(summaries({"x": torch.from_numpy(old)}, (8, 8))))["x"]
    assert distance(before, summaries({"x": torch.from_numpy(old)}, (8, 8))["x"]) == 0
    for size in (1e-3, 1e-1):
        after = summaries({"x": torch.from_numpy(old + size * step)}, (8, 8))["x"]
        assert size / 2 < distance(before, after) < 2 * size
    mirrored = summaries({"x": torch.from_numpy(old[:, ::-1].copy())}, (8, 8))["x"]
    assert distance(before, mirrored) > 0.5
    assert distance(before, summaries({"x": torch.from_numpy(old)}, (8, 9))["x"]) == float("inf")
