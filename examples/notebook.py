"""A notebook as a script: run it cell by cell in an editor that knows `# %%`, or as a whole."""

# %% [markdown]
# # How good are the layers of a network?
#
# scikit-learn's digits, through an untrained network: nothing is downloaded, and features stay in memory.

# %%
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import featbench

images, labels = load_digits(return_X_y=True)
pixels = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
data = {
    "train": TensorDataset(pixels[:1347], torch.tensor(labels[:1347])),
    "val": TensorDataset(pixels[1347:], torch.tensor(labels[1347:])),
}

# %% [markdown]
# Any `nn.Module` will do. Layers are named by the paths of its modules.

# %%
torch.manual_seed(0)
model = nn.Sequential(
    nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
    nn.Sequential(nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.ReLU()),
    nn.Sequential(nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.ReLU()),
)
features = featbench.extract(model, data, layers=["0", "1", "2", "pixels=0.0|input:Identity"])
features

# %% [markdown]
# Weighted kNN, for several k at once. All layers are evaluated; the raw pixels are there to compare with.

# %%
result = featbench.knn(features, k=(1, 5, 20))
result

# %%
print(f"best: {result.best.layer.layer} with k = {result.best.k}, top-1 {result.top1:.3f}")
[record["top1"] for record in result.records]

# %% [markdown]
# Which digits are confused? Predictions are labels as they were given.

# %%
confused = [
    (int(truth), int(guess)) for truth, guess in zip(labels[1347:], result.predictions, strict=True) if truth != guess
]
print(f"{len(confused)} of {len(labels) - 1347} are wrong; the first: {confused[:5]}")

# %% [markdown]
# The nearest images of train, for the first image of val.

# %%
neighbours = result.neighbours
print(labels[neighbours.rows[0, :5]], neighbours.similarities[0, :5].round(3))

# %% [markdown]
# Clusters, and how well they match the digits: means over three seeds.

# %%
clusters = featbench.kmeans(features, layers="2", clusters=10, seeds=3)
print(f"NMI {clusters.nmi:.3f}, accuracy {clusters.hungarian:.3f}")
clusters
