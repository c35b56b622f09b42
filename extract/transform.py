"""From an image to the model's input: resize, crop, normalize.

Resizing and cropping run on Pillow images in the loader's processes and return bytes. Conversion to
floats runs on whole batches on the model's device, so only a quarter of the data is transferred.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from featbench.extract.data.images import refuse_to_blame_an_image
from featbench.extract.errors import ImageError
from featbench.extract.lab import lab_of

MAX_PIXELS = 178_956_970
"""Largest image after resizing: Pillow's limit for decoding."""

NO_MEMORY = "there is too little memory to resize it"

Size = int | tuple[int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """Resize, center crop and normalization; nothing random.

    Attributes
    ----------
    resize : int or (int, int), optional
        Shorter side, or (height, width), in pixels.
    crop : int or (int, int), optional
        Side, or (height, width), in pixels.
    squash : int or (int, int), optional
        Side, or (height, width), to which the image is resized afterwards, whatever its shape.
    interpolation : {"nearest", "bilinear", "bicubic"}
        As in torchvision on Pillow images, antialiased.
    rounding : {"torchvision", "nearest", "floor"}
        Rounding of the longer side and of the crop's corner: torchvision truncates the one and rounds the other.
    mean, std : (float, float, float)
        For red, green and blue in [0, 1].
    channels : {"rgb", "bgr", "lab"}
        Order in which the model gets them, or L* - 50, a* and b*, before normalization.
    """

    resize: Size = 256
    crop: Size = 224
    interpolation: str = "bilinear"
    rounding: str = "torchvision"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    channels: str = "rgb"
    squash: Size = None

    def describe(self) -> dict[str, Any]:
        """Return what enters the fingerprint, without what is younger than other settings and has its default."""
        usual = (("channels", "rgb"), ("squash", None))
        return {key: value for key, value in asdict(self).items() if (key, value) not in usual}

    @property
    def output_size(self) -> tuple[int, int] | None:
        """Height and width of every transformed image; None if they depend on the image."""
        last = self.squash if self.squash is not None else self.crop
        size = last if last is not None else self.resize
        if isinstance(size, int):
            return None if last is None else (size, size)
        return size

    def pixels(self, image: Image.Image, *, name: str = "image") -> Tensor:
        """Resize and crop one RGB image; returns uint8 of shape (3, H, W).

        Raises
        ------
        ImageError
            If it would be larger than `MAX_PIXELS` between the resize and the crop, such as a very
            narrow image; the message names it.
        OutOfMemoryError
            If memory runs out although the image is not too large.
        """
        self._check_size(image, name)
        try:
            return self._pixels(image)
        except MemoryError as error:
            refuse_to_blame_an_image(error, name=name)
            raise ImageError(f"{name}: {image.width:,} x {image.height:,} pixels: {NO_MEMORY}") from error

    def _check_size(self, image: Image.Image, name: str) -> None:
        if isinstance(self.resize, int):
            shorter, longer = sorted(image.size)
            size = self.resize * (self.resize * longer // max(1, shorter))
            if size > MAX_PIXELS:
                raise ImageError(
                    f"{name}: {image.width:,} x {image.height:,} pixels: with transform.resize={self.resize} as its "
                    f"shorter side it would have {size:,} pixels, more than {MAX_PIXELS:,}"
                )

    def _pixels(self, image: Image.Image) -> Tensor:
        if self.resize is not None:
            image = F.resize(image, self._resized(image), interpolation=InterpolationMode(self.interpolation))
        if self.crop is not None:
            image = self._cropped(image)
        if self.squash is not None:
            size = [self.squash, self.squash] if isinstance(self.squash, int) else list(self.squash)
            image = F.resize(image, size, interpolation=InterpolationMode(self.interpolation))
        pixels: Tensor = F.pil_to_tensor(image)
        return pixels

    def _resized(self, image: Image.Image) -> list[int]:
        """Size to resize to, as torchvision computes it."""
        if not isinstance(self.resize, int):
            return list(self.resize or ())
        if self.rounding != "nearest":
            return [self.resize]
        ratio = self.resize / min(image.size)
        return [round(image.height * ratio), round(image.width * ratio)]

    def _cropped(self, image: Image.Image) -> Image.Image:
        height, width = (self.crop, self.crop) if isinstance(self.crop, int) else (self.crop or (0, 0))
        if self.rounding == "torchvision" or image.height < height or image.width < width:
            centred: Image.Image = F.center_crop(image, [height, width])
            return centred
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))

    def scale(self, pixels: Tensor, device: torch.device) -> Tensor:
        """Move a batch of bytes (B, 3, H, W) to the device, and convert it to normalized float32.

        Its memory format is channels last: convolutions run up to 1.8 times as fast on a CPU.
        """
        mean = torch.tensor(self.mean, device=device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=device).view(1, 3, 1, 1)
        batch = pixels.to(device, non_blocking=True)
        batch = (lab_of(batch) if self.channels == "lab" else batch.float().div_(255)).sub_(mean).div_(std)
        if self.channels == "bgr":
            batch = batch.flip(1)
        return batch.contiguous(memory_format=torch.channels_last)
