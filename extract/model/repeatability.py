"""Features of two fixed images must be the same in every pass, in every batch, and in every later run.

The images are computed in integers, so they are the same on every machine. All passes run in float32
on the device of the trunk, initially the CPU. A summary of each layer's features is stored with the
features: their norms, and their products with a few fixed vectors of +1 and -1.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from featbench.extract.errors import ModelError
from featbench.extract.model.dataflow import first_tensor
from featbench.extract.model.tap_names import body_of, structure_of
from featbench.extract.model.taps import TappedTrunk

Summary = Mapping[str, Any]
"""For one layer: `image` [H, W], `norms` of both images' features, and their `products` with each vector."""

NUM_PRODUCTS = 8

TOLERANCE = 1e-4
"""Largest difference of summaries between machines, relative to the norm of the features."""

BATCH_TOLERANCE = 1e-3
"""Largest difference between an image's features alone and in a batch, relative to their norm."""

MORE_PASSES = 24
"""Further passes of a model that draws random numbers, though two passes gave equal features."""


def fixed_images(height: int, width: int) -> Tensor:
    """Return two images (2, 3, H, W), uint8, with patterns of several sizes; the same on every machine."""
    rows, columns = np.arange(height, dtype=np.uint32)[:, None], np.arange(width, dtype=np.uint32)[None, :]
    images = np.zeros((2, 3, height, width), np.uint32)
    for index in range(2):
        for channel in range(3):
            for octave, size in enumerate((1, 4, 16, 64)):
                key = np.uint32(12 * index + 4 * channel + octave + 1)
                images[index, channel] += _mixed(rows // np.uint32(size), columns // np.uint32(size), key) >> 24
    return torch.from_numpy((images // 4).astype(np.uint8))


def check_repeatable(taps: TappedTrunk, images: Tensor) -> dict[str, Tensor]:
    """Refuse a model whose features of an image are random, or depend on the other images of the batch.

    Parameters
    ----------
    taps : TappedTrunk
        Probed, and with its weights loaded.
    images : Tensor of shape (2, 3, H, W)
        Two different images, scaled.

    Returns
    -------
    mapping of str to Tensor
        Features of both images by layer, each image computed alone.

    Raises
    ------
    ModelError
        The message names the layer, how much it differs, and the first module that differs.
    """
    first, second = images[:1], images[1:]
    with _random_state(1):
        alone = taps(first)
    structure = structure_of(body_of(taps.trunk)[0])
    for seed in range(2, 3 + (MORE_PASSES if structure and structure.random else 0)):
        with _random_state(seed):
            again = taps(first)
        changed = next((name for name in alone if not _same(alone[name], again[name])), None)
        if changed is not None:
            raise ModelError(_is_random(taps, first, changed, _distance(alone[changed], again[changed])))
    other, both = taps(second), taps(images)
    for name in alone:
        apart = max(_distance(alone[name], both[name][:1]), _distance(other[name], both[name][1:]))
        if apart > BATCH_TOLERANCE:
            raise ModelError(_depends_on_the_batch(taps, images, name, apart))
    return {name: torch.cat((alone[name], other[name])) for name in alone}


def features_alone(taps: TappedTrunk, images: Tensor) -> dict[str, Tensor]:
    """Return the features of both images by layer, each image computed alone."""
    first, second = taps(images[:1]), taps(images[1:])
    return {name: torch.cat((first[name], second[name])) for name in first}


def summaries(features: Mapping[str, Tensor], image_size: tuple[int, int]) -> dict[str, Summary]:
    """Summarise the features (2, ...) of both images, by layer; plain numbers for JSON."""
    made: dict[str, Summary] = {}
    for name, values in features.items():
        flat = values.detach().float().cpu().numpy().reshape(2, -1).astype(np.float64)
        index = np.arange(flat.shape[1], dtype=np.uint32)
        products = []
        for number in range(NUM_PRODUCTS):
            signs = np.where(_mixed(index, index >> np.uint32(16), np.uint32(97 + number)) >> 31, 1.0, -1.0)
            products.append([float(value) for value in flat @ signs])
        norms = [float(value) for value in np.sqrt((flat**2).sum(1))]
        made[name] = {"image": list(image_size), "norms": norms, "products": products}
    return made


def distance(old: Summary, new: Summary) -> float:
    """Estimate how much features have changed, relative to their norm; infinite if they can't be compared."""
    if old.get("image") != new["image"]:
        return float("inf")
    norms, moved = np.array(old["norms"]), np.array(new["products"]) - np.array(old["products"])
    apart = np.maximum(np.abs(np.array(new["norms"]) - norms), np.sqrt((moved**2).mean(0)))
    scale = np.maximum(norms, np.finfo(np.float32).tiny)
    return float(np.nan_to_num(apart / scale, nan=np.inf).max())


def _mixed(first: npt.NDArray[np.uint32], second: npt.NDArray[np.uint32], key: np.uint32) -> npt.NDArray[np.uint32]:
    """Hash pairs of integers to 32 bits."""
    start = np.uint32(int(key) * 2246822519 % 2**32)
    mixed = first * np.uint32(374761393) + second * np.uint32(668265263) + start
    mixed = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(2246822519)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(3266489917)
    return np.asarray(mixed ^ (mixed >> np.uint32(16)), np.uint32)


@contextmanager
def _random_state(seed: int) -> Iterator[None]:
    """Seed the generators that models draw from, and restore their states afterwards."""
    numpys, pythons = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpys)
            random.setstate(pythons)


def _same(first: Tensor, second: Tensor) -> bool:
    """Whether all bits are equal; NaN equals NaN."""
    return first.shape == second.shape and bool(torch.equal(first.nan_to_num(), second.nan_to_num()))


def _distance(first: Tensor, second: Tensor) -> float:
    """Distance relative to the norm of the first; 0 if they are not finite, which is refused later."""
    if first.shape != second.shape:
        return float("inf")
    norm = float(first.double().norm())
    apart = float((first.double() - second.double()).norm())
    return apart / norm if norm > 0 and np.isfinite(apart) and np.isfinite(norm) else 0.0


def _is_random(taps: TappedTrunk, image: Tensor, layer: str, apart: float) -> str:
    structure = structure_of(body_of(taps.trunk)[0])
    drawn = f" Random numbers are drawn in {', '.join(structure.random[:3])}." if structure and structure.random else ""
    runs = []
    for seed in (3, 4):
        with _random_state(seed):
            runs.append(_traces(taps, image))
    return (
        f"{taps.name} gives other features for the same image in a second forward pass, although it is in eval mode: "
        f"{layer} differs by {_relative(apart)}.{_where(*runs, tolerance=0.0)}{drawn}{_training(taps.trunk)} "
        f"Usual causes are F.dropout without training=self.training, random masking, stochastic depth or noise, and "
        f"state that a pass changes. Turn it off where the module is not training"
    )


def _depends_on_the_batch(taps: TappedTrunk, images: Tensor, layer: str, apart: float) -> str:
    where = _where(_traces(taps, images[:1]), _traces(taps, images), tolerance=BATCH_TOLERANCE)
    return (
        f"{taps.name} gives other features for an image alone than in a batch with another one: {layer} differs by "
        f"{_relative(apart)}.{where}{_training(taps.trunk)} Usual causes are batch norm that uses the batch's "
        f"statistics (training=True, or track_running_stats=False) and means over the first axis. An image's features "
        f"must not depend on the other images"
    )


def _relative(apart: float) -> str:
    """Say how large a difference is, relative to the norm."""
    if not np.isfinite(apart):
        return "its shape"
    return f"{apart:.1%} of its norm" if apart < 10 else f"{apart:.2g} times its norm"


def _training(trunk: nn.Module) -> str:
    modes = [path or "the model" for path, module in trunk.named_modules() if module.training]
    return f" A forward pass leaves {modes[0]} in training mode." if modes else ""


def _traces(taps: TappedTrunk, images: Tensor) -> list[tuple[str, Tensor | None, Tensor | None]]:
    """Each module's path, with its input and output for the first image, in the order in which modules return."""
    found: list[tuple[str, Tensor | None, Tensor | None]] = []
    entered: dict[str, Tensor | None] = {}

    def part(value: Any) -> Tensor | None:
        of_images = isinstance(value, Tensor) and value.ndim > 0 and len(value) == len(images)
        return _sums(value[:1]) if of_images else None

    handles = []
    for path, module in taps.trunk.named_modules():
        before = lambda _, args, kwargs, path=path: entered.update({path: part(first_tensor(args, kwargs))})  # noqa: E731
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        after = lambda _m, _i, output, path=path: found.append((path, entered.get(path), part(output)))  # noqa: E731
        handles.append(module.register_forward_hook(after))
    try:
        with suppress(ModelError):
            taps(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _sums(values: Tensor) -> Tensor:
    values = values.double().flatten()
    signs = 1 - 2.0 * (torch.arange(len(values), device=values.device) % 3 == 0)
    return torch.stack((values.sum(), (values * signs).sum(), values.square().sum()))


def _where(
    first: list[tuple[str, Tensor | None, Tensor | None]],
    second: list[tuple[str, Tensor | None, Tensor | None]],
    *,
    tolerance: float,
) -> str:
    """Say which module's output is the first to differ between two passes."""
    for (path, entered, left), (_, entered_too, left_too) in zip(first, second, strict=False):
        if left is not None and left_too is not None and not _near(left, left_too, tolerance):
            before = entered is not None and entered_too is not None and not _near(entered, entered_too, tolerance)
            where = path or "the model"
            return (
                f" The first difference is before {where}, whose input differs."
                if before
                else f" The first difference is in {where}."
            )
    return ""


def _near(first: Tensor, second: Tensor, tolerance: float) -> bool:
    return bool(torch.equal(first, second)) if tolerance == 0 else _distance(first, second) <= tolerance
