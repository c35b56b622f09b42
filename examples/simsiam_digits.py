"""Train a small network on handwritten digits without their labels, and watch its features get better.

SimSiam (Chen and He 2020, arXiv:2011.10566) on scikit-learn's embedded digits: nothing is downloaded, and it takes
about half a minute.

    python examples/simsiam_digits.py

Every tenth epoch prints the kNN accuracy of `featbench.knn`, computed in memory. At the end the layers of the trained
and of the untrained network are stored in `features/`, where `bench` finds them:

    bench evaluate --features simsiam
    bench compare untrained simsiam
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import featbench

LAYERS = ("block1", "block2", "block3")
LEARNING_RATE = 0.05


class Encoder(nn.Module):
    """Three convolutional blocks and the mean over positions: 8 x 8 pixels become 64 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.block1, self.block2, self.block3 = block(1, 16), block(16, 32, stride=2), block(32, 64, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, 64) of images (B, 1, 8, 8)."""
        return self.block3(self.block2(self.block1(images))).mean(dim=(2, 3))


class SimSiam(nn.Module):
    """The encoder, with the projection and the prediction that training needs."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.project = nn.Sequential(
            nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 128), nn.BatchNorm1d(128)
        )
        self.predict = nn.Sequential(nn.Linear(128, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 128))

    def forward(self, images: Tensor) -> Tensor:
        """Return the loss of two random views of each image."""
        first, second = (self.project(self.encoder(augmented(images))) for _ in range(2))
        return (distance(self.predict(first), second) + distance(self.predict(second), first)) / 2


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return a convolution with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def distance(prediction: Tensor, target: Tensor) -> Tensor:
    """Minus the cosine; the target is a constant, which is what keeps SimSiam from collapsing."""
    return -F.cosine_similarity(prediction, target.detach()).mean()


def augmented(images: Tensor) -> Tensor:
    """Shift, turn, scale and shear each image at random, and change its contrast."""
    count = len(images)
    angle, shear = (torch.empty(count).uniform_(-0.2, 0.2) for _ in range(2))
    scale, shift = torch.empty(count, 2).uniform_(0.8, 1.25), torch.empty(count, 2).uniform_(-0.25, 0.25)
    rows = [torch.cos(angle) * scale[:, 0], -torch.sin(angle) + shear, shift[:, 0]]
    columns = [torch.sin(angle), torch.cos(angle) * scale[:, 1], shift[:, 1]]
    matrices = torch.stack([torch.stack(rows, 1), torch.stack(columns, 1)], 1)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    contrast = torch.empty(count, 1, 1, 1).uniform_(0.6, 1.4)
    return F.grid_sample(images, grid, align_corners=False) * contrast + 0.05 * torch.randn_like(images)


def digits() -> dict[str, TensorDataset]:
    """Return 1,347 images of train and 450 of val, the last ones: other people wrote them."""
    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    return {
        split: TensorDataset(pixels[rows], torch.tensor(labels[rows]))
        for split, rows in (("train", slice(0, 1347)), ("val", slice(1347, None)))
    }


def train(encoder: Encoder, data: dict[str, TensorDataset], *, epochs: int, checkpoints: Path) -> None:
    """Train without labels; print the kNN accuracy, and save a checkpoint, each tenth epoch."""
    model, (images, _) = SimSiam(encoder), data["train"].tensors
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=5e-4)
    checkpoints.mkdir(parents=True, exist_ok=True)
    for epoch in range(1, epochs + 1):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2
        losses = []
        for rows in torch.randperm(len(images)).split(128)[:-1]:
            loss = model(images[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if epoch % 10 == 0 or epoch in (1, epochs):
            features = featbench.extract(encoder, data, layers="block3")
            top1 = featbench.knn(features, k=20).top1
            print(
                f"epoch {epoch:3d}: loss {sum(losses) / len(losses):.3f}, kNN top-1 {100 * (top1 or 0):.1f} %",
                flush=True,
            )
            torch.save(encoder.state_dict(), checkpoints / f"epoch_{epoch:03d}.pt")


def main() -> None:
    """Train, then compare all layers with those of the untrained network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--store", type=Path, default=Path("features"), help="where the features of both are stored")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    settings = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the network is so small that more threads only wait for each other
    data, encoder = digits(), Encoder()
    results = {}
    for name in ("untrained", "simsiam"):
        if name == "simsiam":
            train(encoder, data, epochs=settings.epochs, checkpoints=settings.checkpoints)
        features = featbench.extract(encoder, data, layers=LAYERS, store=settings.store, name=name, overwrite=True)
        results[name] = featbench.knn(features, k=20)
    print("\nkNN top-1 in %, k = 20  " + "".join(f"{layer:>10}" for layer in LAYERS))
    for name, result in results.items():
        print(f"{name:24}" + "".join(f"{100 * each.top1:10.1f}" for each in result))
    print(f"\nMore: bench compare untrained simsiam --store {settings.store}")


if __name__ == "__main__":
    main()
