"""Stage one against what it replaces: the eager loop that projects write, and the bare forward pass.

Photographs are those of the folder BENCH_PHOTOS, with a folder for each split (by default validation and test; name
others by BENCH_SPLITS=train,val); without it JPEGs are generated. BENCH_LIMIT images of each split are used, 400 by
default.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.features import in_turns
from featbench.extract.data.pictures import ImageSource, Picture
from featbench.extract.data.sources import open_sources
from featbench.extract.extraction import extract_chunks
from featbench.extract.loading import default_workers
from featbench.extract.model.compiling import CompiledTrunk, probe_pixels
from featbench.extract.model.taps import TappedTrunk
from featbench.extract.model.trunks import build_trunk
from featbench.extract.transform import Transform
from featbench.pipelines.extraction.computing import COMPUTED
from featbench.store import ChunkWriter, FeatureSet, LayerInfo, Manifest, SplitRows, add_layers, open_or_create
from featbench.store.layers import layers_of

Row = tuple[str, str, str, str, str]
"""What was measured, ours, the yardstick, their ratio, and the target."""

Sources = Mapping[str, ImageSource]

BATCH = 32
CPU = torch.device("cpu")

EAGER_LOOP = """
import sys, time
import numpy as np, torch
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms

root, splits, out, weights = sys.argv[1], sys.argv[2].split(","), sys.argv[3], sys.argv[4]
transform = transforms.Compose([
    transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(),
    transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
])
model = models.resnet50().eval()
model.load_state_dict(torch.load(weights))
maps = {}
for name in ("layer3", "layer4"):
    getattr(model, name).register_forward_hook(lambda m, i, o, name=name: maps.update({name: o.mean((2, 3))}))
for split in splits:
    images = datasets.ImageFolder(f"{root}/{split}", transform)
    features = {"layer3": [], "layer4": []}
    with torch.no_grad():
        for batch, _ in DataLoader(images, batch_size=32, num_workers=2):
            model(batch)
            for name in features:
                features[name].append(maps[name].cpu())
    for name in features:
        np.save(f"{out}-{split}-{name}.npy", torch.cat(features[name]).numpy())
"""
"""What projects write: ImageFolder, DataLoader, hooks, eager ResNet-50."""


class Noise(ImageSource):
    """Images in memory, so that decoding costs nothing."""

    in_memory = True

    def __init__(self, num_rows: int) -> None:
        random = np.random.default_rng(0)
        self._images = [Image.fromarray(random.integers(0, 256, (224, 224, 3), dtype=np.uint8)) for _ in range(64)]
        self.rows = SplitRows(
            labels=np.zeros(num_rows, np.int64), paths=[str(i) for i in range(num_rows)], class_names=("noise",)
        )

    def read(self, row: int) -> Picture:
        return Picture(image=self._images[row % 64], digest=1 + row % 64, name=str(row))


def photographs(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Return a folder of photographs and its two splits: the user's, or generated JPEGs of ImageNet's usual size."""
    given = os.environ.get("BENCH_PHOTOS")
    if given:
        return Path(given), tuple(os.environ.get("BENCH_SPLITS", "validation,test").split(","))
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(200):
            path = folder / "photographs" / split / f"class{number % 4}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((500, 375))
            grain = random.integers(-8, 9, (375, 500, 1))
            pixels = np.clip(np.asarray(coarse, int) + grain, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(path, quality=90)
    return folder / "photographs", ("train", "val")


def commands(folder: Path) -> Iterator[Row]:
    """Run `bench extract` with a compiled graph, without the time of compiling, and the eager loop; whole processes."""
    root, splits = photographs(folder)
    limit = int(os.environ.get("BENCH_LIMIT", "400"))
    linked = _linked(root, splits, limit, folder / "linked")
    weights = folder / "resnet50.pth"
    torch.manual_seed(0)
    torch.save(build_trunk("resnet50").state_dict(), weights)
    count = sum(1 for split in splits for _ in (linked / split).glob("*/*"))

    def ours(mode: str) -> float:
        name = f"command-{mode}"
        shutil.rmtree(folder / "features" / name, ignore_errors=True)
        command = [
            sys.executable, "-m", "featbench", "extract", "folder", "--data", linked, "--train-split", splits[0],
            "--val-split", splits[1], "model.trunk=resnet50", "--weights", weights, "--layers", "res4,res5",
            "--batch-size", str(BATCH), "--compile", mode, "--store", folder / "features", "--name", name, "--quiet",
            "data.on_class_fault=warn", "--device", "cpu",
        ]  # fmt: skip
        start = time.perf_counter()
        subprocess.run(list(map(str, command)), check=True)
        record = FeatureSet.open(folder / "features" / name).manifest.notes[COMPUTED]["res5"]
        assert bool(record["graph"]) == (mode == "on"), record["reason"]
        return time.perf_counter() - start - float(record.get("compile_s", 0.0))

    def loop() -> float:
        start = time.perf_counter()
        arguments = [linked, ",".join(splits), folder / "loop", weights]
        subprocess.run([sys.executable, "-c", EAGER_LOOP, *map(str, arguments)], check=True)
        return time.perf_counter() - start

    seconds = [(ours("on"), ours("off"), loop()) for _ in range(int(os.environ.get("BENCH_REPEATS", "2")))]
    compiled, eager, plain = (float(np.median(each)) for each in zip(*seconds, strict=True))
    for mode, taken, target in (("on", compiled, ">= 1.9x"), ("off", eager, "")):
        yield (
            f"`bench extract --compile {mode}`, ResNet-50, two layers, {count} photographs, without compiling",
            f"{count / taken:.1f} images/s",
            f"eager loop {count / plain:.1f} images/s",
            f"{plain / taken:.2f}x",
            target,
        )


def compiled(folder: Path) -> Iterator[Row]:
    """Extract with a compiled graph, and run the graph alone; then four layers and one."""
    root, splits = photographs(folder)
    limit = int(os.environ.get("BENCH_LIMIT", "400"))
    linked = _linked(root, splits, limit, folder / "linked")
    real = open_sources(source="folder", root=linked, train_split=splits[0], val_split=splits[1], on_class_fault="warn")
    noise = {"train": Noise(128), "val": Noise(32)}
    graphs = {}
    for layers in (("res5",), ("res2", "res3", "res4", "res5")):
        trunk = build_trunk("resnet50").to(memory_format=torch.channels_last)
        taps = TappedTrunk(trunk, name="resnet50", layers=layers_of(list(layers)))
        infos = taps.probe(torch.zeros(1, 3, 224, 224))
        images = Transform().scale(probe_pixels(224, 224, BATCH), CPU)
        graphs[len(layers)] = CompiledTrunk(taps, images), infos, images

    def extract(sources: Sources, number: int, transform: Transform, workers: int) -> None:
        graph, infos, _ = graphs[number]
        features = fresh(folder / "compiled", sources, infos)
        work = [item for item in features.pending(list(infos)) if item.split == "train"]
        extract_chunks(
            features, work, writer=ChunkWriter(features), trunk=graph, sources=sources, transform=transform,
            batch_size=BATCH, device=CPU, workers=workers,
        )  # fmt: skip

    def bare(num_rows: int) -> None:
        graph, _, images = graphs[1]
        for _ in range(-(-num_rows // BATCH)):
            graph(images)

    workers = default_workers(real)
    cases = (
        ("images in memory", noise, Transform(resize=None), 0, ">= 0.95x"),
        ("photographs, decoded on the same cores", real, Transform(), workers, ""),
    )
    for what, sources, transform, processes, target in cases:
        count = len(sources["train"].rows.labels)
        first, second, ratio = in_turns(
            partial(extract, sources, 1, transform, processes), partial(bare, count), repeats=3
        )
        yield (
            f"extraction, compiled ResNet-50, {what}",
            f"{count / first:.1f} images/s",
            f"the same graph alone {count / second:.1f} images/s",
            f"{1 / ratio:.2f}x",
            target,
        )
    in_memory = Transform(resize=None)
    four, one, ratio = in_turns(
        lambda: extract(noise, 4, in_memory, 0), lambda: extract(noise, 1, in_memory, 0), repeats=3
    )
    what = "four layers in one pass, compiled ResNet-50"
    yield what, f"{four:.2f} s", f"one layer {one:.2f} s", f"{ratio:.2f}x", "<= 1.05x"


def _linked(root: Path, splits: Sequence[str], limit: int, into: Path) -> Path:
    """Link at most `limit` images of each split, evenly from all classes, into a folder of the same layout."""
    shutil.rmtree(into, ignore_errors=True)
    for split in splits:
        paths = sorted(path for path in (root / split).glob("*/*") if path.is_file())
        for path in [paths[index * len(paths) // limit] for index in range(limit)] if len(paths) > limit else paths:
            link = into / split / path.parent.name / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
    return into


def fresh(path: Path, sources: Sources, infos: Mapping[str, LayerInfo]) -> FeatureSet:
    """Make a feature set without chunks, replacing one that is there."""
    shutil.rmtree(path, ignore_errors=True)
    rows = {split: source.rows for split, source in sources.items()}
    manifest = Manifest(
        made_from={}, dtype="float32", compression="none", rows_per_chunk=4 * BATCH,
        splits={split: each.info() for split, each in rows.items()},
    )  # fmt: skip
    return add_layers(open_or_create(path, manifest, rows), infos)
