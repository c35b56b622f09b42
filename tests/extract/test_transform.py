"""The transform equals torchvision's own, which VISSL, DINO and the others use."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from featbench.extract.transform import Transform


def photograph(size: tuple[int, int], seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(400, 711), (333, 257), (64, 64), (100, 300)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_pixels_and_numbers_are_those_of_torchvisions_transforms(size: tuple[int, int], interpolation: str) -> None:
    image = photograph(size)
    ours = Transform(resize=96, crop=64, interpolation=interpolation)
    peer = transforms.Compose(
        [
            transforms.Resize(96, interpolation=InterpolationMode(interpolation)),
            transforms.CenterCrop(64),
            transforms.ToTensor(),
            transforms.Normalize(ours.mean, ours.std),
        ]
    )
    batch = ours.scale(ours.pixels(image)[None], torch.device("cpu"))
    assert torch.equal(batch[0].contiguous(), peer(image))


def test_sizes_can_be_pairs_and_steps_can_be_left_out() -> None:
    image = photograph((50, 40))
    assert Transform(resize=(20, 30), crop=None).pixels(image).shape == (3, 20, 30)
    assert Transform(resize=None, crop=(8, 12)).pixels(image).shape == (3, 8, 12)
    assert Transform(resize=None, crop=None).pixels(image).shape == (3, 40, 50)


def test_nearest_rounding_rounds_the_side_and_floors_the_margin() -> None:
    image = photograph((400, 534))
    resized = image.resize((256, 342), Image.Resampling.BILINEAR)  # 341.76
    expected = np.asarray(resized.crop((16, 59, 16 + 224, 59 + 224)))
    ours = Transform(rounding="nearest").pixels(image).permute(1, 2, 0).numpy()
    assert np.array_equal(ours, expected)
    assert not np.array_equal(Transform().pixels(image).permute(1, 2, 0).numpy(), expected)
