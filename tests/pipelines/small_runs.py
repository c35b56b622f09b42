"""A small network in a file, checkpoints of it, and small data sets: for suites and watched folders."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

NET = """
import time
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1 = nn.Conv2d(3, 8, 3, stride=2)
        self.layer2 = nn.Conv2d(8, 16, 3, stride=2)

    def forward(self, images):
        return self.layer2(self.layer1(images).relu())


def net():
    return Net()
"""

PIPELINE: dict[str, Any] = {
    "name": "small", "transform": {"resize": 12, "crop": 12}, "model": {"trunk": "net.py:net"},
    "layers": ["layer1", "layer2"], "extract": {"workers": 0, "batch_size": 4}, "storage": {"rows_per_chunk": 4},
    "evaluate": {"knn": {"k": [1, 3]}, "kmeans": {"clusters": ["classes"]}},
}  # fmt: skip


def make_net(folder: Path) -> None:
    """Write the network's code and a pipeline, `p.yaml`."""
    (folder / "net.py").write_text(NET)
    write_yaml(folder / "p.yaml", PIPELINE | {"data": {"root": "photos"}})


def write_yaml(path: Path, settings: dict[str, Any]) -> Path:
    """Write settings to a YAML file."""
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return path


def state_of(folder: Path, seed: int) -> dict[str, torch.Tensor]:
    """The network's weights, random from a seed."""
    torch.manual_seed(seed)
    net = runpy.run_path(str(folder / "net.py"))["net"]
    state: dict[str, torch.Tensor] = net().state_dict()
    return state


def save_checkpoint(path: Path, seed: int, **others: Any) -> Path:
    """Save a checkpoint, as a training script would; `net.py` is in the folder above."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = state_of(path.parent.parent, seed)
    torch.save({"state_dict": state, **others} if others else state, path)
    return path


def make_images(root: Path, *, seed: int, num_train: int = 6, num_val: int = 3) -> Path:
    """Write a data set of two classes."""
    random = np.random.default_rng(seed)
    for split, count in (("train", num_train), ("val", num_val)):
        for name in ("a", "b"):
            for index in range(count):
                path = root / split / name / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(path)
    return root
