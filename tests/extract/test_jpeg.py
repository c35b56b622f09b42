"""Other decoders of JPEG files give Pillow's pixels, and what they refuse is left to Pillow."""

from __future__ import annotations

import importlib.util
import io
import random
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featbench.extract.data import jpeg
from featbench.extract.data.images import read_picture
from featbench.extract.errors import ImageError
from featbench.store import FeatureSet
from tests.conftest import Bench, save_image

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 5, 2)

    def forward(self, images):
        return self.conv(images)

def make():
    return Net()
"""

DECODERS = [
    "torchvision",
    pytest.param(
        "simplejpeg",
        marks=pytest.mark.skipif(importlib.util.find_spec("simplejpeg") is None, reason="needs simplejpeg"),
    ),
]


def photograph(width: int = 70, height: int = 45) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def pixels_of(file: bytes | Path, decoder: str = "pillow") -> np.ndarray:
    return np.asarray(read_picture(file, name="a", decoder=decoder).image)


def message_of(content: bytes, decoder: str) -> str:
    with pytest.raises(ImageError) as raised:
        pixels_of(content, decoder)
    return str(raised.value)


def encoded(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 20}], ids=str)
def test_the_pixels_are_those_of_pillow(decoder: str, mode: str, options: dict[str, Any]) -> None:
    content = encoded(photograph().convert(mode), **options)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert np.array_equal(pixels_of(content, decoder), expected)


@pytest.mark.parametrize("decoder", DECODERS)
def test_jpeg_files_are_decoded_by_the_chosen_one(decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.load", lambda _: 1 / 0)
    assert read_picture(encoded(photograph()), name="a", decoder=decoder).image.size == (70, 45)


@pytest.mark.parametrize("ending", ["png", "webp", "tiff"])
def test_other_files_are_decoded_by_pillow(tmp_path: Path, ending: str) -> None:
    path = save_image(tmp_path / f"a.{ending}")
    assert np.array_equal(pixels_of(path, "torchvision"), pixels_of(path))


@pytest.mark.parametrize("decoder", DECODERS)
def test_damaged_files_are_read_or_refused_as_by_pillow(decoder: str) -> None:
    """Cut off, or with one flipped bit; most of the latter can be read."""
    whole, chance = encoded(photograph(300, 200)), random.Random(0)
    damaged = [whole[: int(len(whole) * part)] for part in (0.02, 0.3, 0.9, 0.99)]
    for _ in range(60):
        flipped = bytearray(whole)
        flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
        damaged.append(bytes(flipped))
    refused = 0
    for content in damaged:
        try:
            expected = pixels_of(content)
        except ImageError:
            refused += 1
            assert message_of(content, decoder) == message_of(content, "pillow")
        else:
            assert np.array_equal(pixels_of(content, decoder), expected)
    assert 4 <= refused < 40


def test_a_file_that_a_decoder_refuses_or_changes_the_size_of_is_left_to_pillow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = encoded(photograph())
    for wrong in (lambda _: 1 / 0, lambda _: np.zeros((45, 71, 3), np.uint8), lambda _: np.zeros((45, 70), np.uint8)):
        monkeypatch.setattr(jpeg, "_DECODERS", {"torchvision": wrong})
        assert np.array_equal(pixels_of(content, "torchvision"), pixels_of(content))


def test_the_decoder_is_part_of_the_fingerprint(
    bench: Bench, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def extract(*more: str) -> subprocess.CompletedProcess[str]:
        return bench(
            "extract", "folder", "--data", photographs, "model.trunk=own.py:make", "--random-weights", "1", "--layers",
            "conv", "transform.resize=32", "transform.crop=32", "--workers", "0", *more
        )  # fmt: skip

    (tmp_path / "own.py").write_text(NET)
    assert extract("data.decoder=torchvision").returncode == 0
    assert FeatureSet.open(tmp_path / "features/folder").manifest.made_from["data"] == {"decoder": "torchvision"}
    refused = extract()
    assert refused.returncode == 2
    assert 'data.decoder: it has "torchvision", you ask for nothing' in refused.stderr
    monkeypatch.setattr(jpeg, "find_spec", lambda _: None)
    refused = extract("data.decoder=simplejpeg", "--name", "other")
    assert refused.returncode == 2
    assert "pip install 'featbench[simplejpeg]'" in refused.stderr
    refused = bench("extract", "digits", "data.decoder=torchvision")
    assert refused.returncode == 2
    assert "has no effect with data.source=digits" in refused.stderr
