"""Decoders of JPEG files that are faster than Pillow; Pillow decodes whatever they don't.

All of them use libjpeg-turbo, so the pixels are those of Pillow as long as the versions of that library agree in
what they compute. They get only files whose header Pillow has read, as grey or colours (not CMYK), so that its limit
of pixels holds; a file that they refuse, or return in another size, is decoded by Pillow, whose error counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec

import numpy as np
from PIL import Image

from featbench.extract.errors import DataError
from featbench.store.typing import Bytes


def check_decoder(name: str) -> None:
    """Refuse a decoder that is not installed.

    Raises
    ------
    DataError
        The message says how to install it.
    """
    if name == "simplejpeg" and find_spec("simplejpeg") is None:
        raise DataError(
            "data.decoder=simplejpeg needs simplejpeg, which is not installed: pip install 'featbench[simplejpeg]', or "
            "set data.decoder=torchvision, which is"
        )


def decode_faster(header: Image.Image, content: bytes, decoder: str) -> Image.Image | None:
    """Decode a JPEG file without Pillow; None if that is left to Pillow.

    Parameters
    ----------
    header : Image
        The file as `Image.open` returns it, not loaded.
    content : bytes
        The whole file.
    decoder : {"pillow", "torchvision", "simplejpeg"}
    """
    decode = _DECODERS.get(decoder)
    if decode is None or header.format != "JPEG" or header.mode not in ("L", "RGB"):
        return None
    with suppress(Exception):  # of many kinds; Pillow says what is wrong with the file, or reads it
        pixels = decode(content)
        if pixels.shape == (header.height, header.width, 3):
            return Image.fromarray(pixels)
    return None


def _torchvision(content: bytes) -> Bytes:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    pixels = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())


def _simplejpeg(content: bytes) -> Bytes:
    import simplejpeg

    return np.asarray(simplejpeg.decode_jpeg(content, colorspace="RGB"))


_DECODERS: Mapping[str, Callable[[bytes], Bytes]] = {"torchvision": _torchvision, "simplejpeg": _simplejpeg}
