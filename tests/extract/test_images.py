"""Decoding: every mode becomes RGB, and whatever can't be read is an error that names the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from featbench.extract.data.images import read_picture, to_rgb
from featbench.extract.errors import ImageError
from tests.conftest import save_image

MODES = [
    "1",
    "L",
    "P",
    "RGB",
    "RGBA",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "LA",
    "PA",
    "RGBX",
    "RGBa",
    "La",
    "I;16",
    "I;16B",
    "I;16L",
]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = to_rgb(Image.new(mode, (5, 4)))
    assert (image.mode, image.size) == ("RGB", (5, 4))


def test_sixteen_bit_grayscale_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    """Pillow's own conversion turns all above 255 white."""
    Image.fromarray(np.array([[0, 257 * 100, 65_535]], np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(read_picture(tmp_path / "a.png", name="a").image)[0, :, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize("ending", ["jpg", "png", "bmp", "gif", "webp", "tiff", "ppm"])
def test_files_of_many_kinds_are_read(tmp_path: Path, ending: str) -> None:
    assert read_picture(save_image(tmp_path / f"a.{ending}"), name="a").image.size == (40, 30)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: b"", "it is empty"),
        (lambda content: b"this is text", "not an image of a known kind"),
        (lambda content: content[: len(content) // 2], "damaged: "),
        (lambda content: content[:-40], "damaged: "),
    ],
)
@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_what_cannot_be_read_is_named_with_the_reason(
    tmp_path: Path, spoil: Callable[..., Any], message: str, ending: str
) -> None:
    path = save_image(tmp_path / f'it\'s a "file".{ending}', size=(200, 160))
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ImageError, match=message) as error:
        read_picture(path, name=str(path))
    assert str(path) in str(error.value)


def test_a_flipped_bit_of_a_png_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path = save_image(tmp_path / "a.png", size=(200, 160))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ImageError, match="damaged"):
        read_picture(path, name="a.png")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.jpg: .*does not exist"):
        read_picture(tmp_path / "gone.jpg", name="gone.jpg")


def test_a_huge_image_is_refused_before_it_fills_memory(tmp_path: Path) -> None:
    """20,000 x 20,000 pixels in a small file."""
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    with pytest.raises(ImageError, match="too large"):
        read_picture(tmp_path / "huge.png", name="huge.png")


def test_truncated_images_are_not_let_through_by_a_global_setting() -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_bytes_can_be_read(tmp_path: Path) -> None:
    content = save_image(tmp_path / "a.jpg").read_bytes()
    assert read_picture(content, name="a").image.size == (40, 30)
