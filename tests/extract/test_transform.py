"""The transform equals torchvision's own, which VISSL, DINO and the others use."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from featbench.extract.config import TransformConfig
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


def test_a_squashed_image_has_lost_its_shape_after_its_shorter_side_was_resized() -> None:
    """As in VISSL's extraction of Places205: two steps, whose pixels are not those of one."""
    image = photograph((130, 97))
    both = transforms.Compose([transforms.Resize(64), transforms.Resize((48, 40)), transforms.PILToTensor()])
    ours = Transform(resize=64, crop=None, squash=(48, 40))
    assert torch.equal(ours.pixels(image), both(image))
    assert not torch.equal(Transform(resize=(48, 40), crop=None).pixels(image), both(image))
    assert (ours.output_size, Transform(crop=None, squash=8).output_size) == ((48, 40), (8, 8))
    assert "squash" not in Transform().describe(), "fingerprints of earlier versions stay"
    assert ours.describe()["squash"] == (48, 40)


def test_floor_truncates_the_side_and_half_margins() -> None:
    """As transformers' processors: 534 * 224 / 400 = 299.04, and a margin of 37.5, which torchvision rounds to 38."""
    image = photograph((534, 400))
    resized = image.resize((299, 224), Image.Resampling.BILINEAR)
    expected = np.asarray(resized.crop((37, 0, 37 + 224, 224)))
    ours = Transform(resize=224, rounding="floor").pixels(image).permute(1, 2, 0).numpy()
    assert np.array_equal(ours, expected)


def test_nearest_rounding_rounds_the_side_and_floors_the_margin() -> None:
    image = photograph((400, 534))
    resized = image.resize((256, 342), Image.Resampling.BILINEAR)  # 341.76
    expected = np.asarray(resized.crop((16, 59, 16 + 224, 59 + 224)))
    ours = Transform(rounding="nearest").pixels(image).permute(1, 2, 0).numpy()
    assert np.array_equal(ours, expected)
    assert not np.array_equal(Transform().pixels(image).permute(1, 2, 0).numpy(), expected)


def test_lab_is_what_opencv_makes_of_bytes() -> None:
    """As VISSL scales it: cv2.cvtColor(..., COLOR_RGB2LAB) of OpenCV 5.0 gave these bytes for these colours."""
    colours = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [128, 64, 32], [10, 20, 30], [200, 180, 90]]
    theirs = [[136, 208, 195], [224, 42, 211], [82, 207, 20], [255, 128, 128], [89, 153, 159], [15, 128, 120],
              [187, 124, 176]]  # fmt: skip
    pixels = torch.tensor(colours, dtype=torch.uint8).T.reshape(1, 3, 1, 7)
    transform = Transform(mean=(0, 0, 0), std=(1, 1, 1), channels="lab")
    made = transform.scale(pixels, torch.device("cpu"))[0, :, 0].T
    expected = torch.tensor(theirs) * torch.tensor([100 / 255, 1, 1]) - torch.tensor([50, 128, 128])
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"lab needs transform\.mean"):
        TransformConfig(channels="lab")
