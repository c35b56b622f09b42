"""Detects what kind of file was given as weights, by its bytes; says how to convert what can't be read."""

from __future__ import annotations

import shlex
import zipfile
from pathlib import Path
from typing import Literal

from featbench.extract.errors import WeightsError

Format = Literal["torch", "safetensors", "npz"]

_FOREIGN: tuple[tuple[bytes, int, str], ...] = (
    (b"\x89HDF\r\n\x1a\n", 0, "an HDF5 file, as Keras and TensorFlow write them"),
    (b"GGUF", 0, "a GGUF file, as llama.cpp reads them"),
    (b"TFL3", 4, "a model of TensorFlow Lite"),
    (b"\x93NUMPY", 0, "one NumPy array (.npy), not a model's named parameters"),
    (b"PAR1", 0, "a Parquet file"),
    (b"\x1f\x8b", 0, "compressed by gzip: unpack it with gunzip or tar xzf"),
    (b"BZh", 0, "compressed by bzip2: unpack it"),
    (b"\xfd7zXZ\x00", 0, "compressed by xz: unpack it"),
    (b"\x28\xb5\x2f\xfd", 0, "compressed by zstd: unpack it"),
    (b"7z\xbc\xaf\x27\x1c", 0, "a 7z archive: unpack it"),
    (b"Rar!", 0, "a RAR archive: unpack it"),
    (b"ustar", 257, "a tar archive: unpack it with tar xf"),
    (b"\x89PNG", 0, "an image"),
    (b"\xff\xd8\xff", 0, "an image"),
    (b"%PDF", 0, "a PDF"),
    (b"\x7fELF", 0, "a program"),
)
"""Bytes, their offset, and the kind of file."""

_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""With which files of `torch.save` began before they were zip archives."""

_LEVELDB = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"
_CONVERT = "Load it where it was made, and save a state dict: torch.save(model.state_dict(), ...)"


def format_of(path: Path) -> Format:
    """Detect the format of a file that can be read as weights.

    Raises
    ------
    WeightsError
        If it is of another kind, which the message names.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
        file.seek(max(0, size - 8))
        tail = file.read(8)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return "safetensors"  # first, since the length of its header may look like any other signature
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise WeightsError(f"{path}: a web page, not weights; the download went wrong")
    if text.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path}: a pointer of Git LFS, not the weights; run `git lfs pull` in its repository")
    if zipfile.is_zipfile(path) and head.startswith(b"PK"):
        return _format_of_zip(path)
    if head.startswith(b"\x80"):
        if not head.startswith(_LEGACY[:2]) or _LEGACY[2:] not in head[:64]:
            if path.suffix == ".msgpack":
                raise WeightsError(_foreign(path, "a msgpack file, as Flax writes them"))
            raise WeightsError(
                f"{path}: a Python pickle that torch.save did not write. Unpickle it where it was made, and save its "
                f"tensors: torch.save({{name: torch.as_tensor(array) for name, array in content.items()}}, 'w.pth')"
            )
        return "torch"
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return "safetensors"
    for magic, place, what in _FOREIGN:
        if head[place : place + len(magic)] == magic:
            raise WeightsError(_foreign(path, what))
    if path.suffix == ".onnx" or (head[:1] == b"\x08" and (b"onnx" in text or b"pytorch" in text)):
        raise WeightsError(_foreign(path, "an ONNX model"))
    if path.suffix == ".msgpack":
        raise WeightsError(_foreign(path, "a msgpack file, as Flax writes them"))
    if tail == _LEVELDB or ".data-0" in path.name or text.startswith(b"model_checkpoint_path"):
        raise WeightsError(_foreign(path, "part of a checkpoint of TensorFlow"))
    if head.startswith(b"PK"):
        return "torch"  # truncated: torch reports it
    if head and all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head):
        raise WeightsError(f"{path}: a text file, not weights; it starts with {head[:60].decode()!r}")
    raise WeightsError(f"{path}: not a checkpoint: it is neither a zip archive nor a pickle ({head[:16]!r})")


def damaged_member(path: Path) -> str:
    """Name the first member of a zip archive whose checksum does not match; "" if there is none.

    `torch.save` can be configured not to write checksums; then they are 0 and nothing is checked.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.CRC:
                try:
                    with archive.open(member) as stream:
                        while stream.read(1 << 20):
                            pass
                except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, RuntimeError):
                    return member.filename
    return ""


def _format_of_zip(path: Path) -> Format:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        saved = path.with_name(path.stem + "_state.pth")
        raise WeightsError(
            f"{path}: a TorchScript archive: a program with its weights, not a state dict. If you trust whoever made "
            f"it, this runs it and saves its state dict, to be given instead: python -c 'import sys, torch; "
            f'torch.save(torch.jit.load(sys.argv[1], map_location="cpu").state_dict(), sys.argv[2])\' '
            f"{shlex.quote(str(path))} {shlex.quote(str(saved))}"
        )
    if "data.pkl" in inner:
        return "torch"
    if names and all(name.endswith(".npy") for name in names):
        if any(name.endswith("/kernel.npy") for name in names):
            raise WeightsError(
                f"{path}: a NumPy archive with the names of JAX and Flax, as Google's ViT and BiT are published. timm "
                f"reads those: python -c 'import sys, timm, torch; torch.save(timm.create_model(sys.argv[2], "
                f"checkpoint_path=sys.argv[1]).state_dict(), sys.argv[3])' {shlex.quote(str(path))} NAME "
                f"{shlex.quote(str(path.with_suffix('.pth')))}, where NAME is the model's in timm; then give that with "
                f"model.trunk=timm:NAME"
            )
        return "npz"
    if "models/model.json" in inner or any(name.startswith("archive_format") for name in inner | set(names)):
        raise WeightsError(_foreign(path, "an exported program (torch.export)"))
    if "model.weights.h5" in names:
        raise WeightsError(_foreign(path, "a model of Keras"))
    raise WeightsError(
        f"{path}: a zip archive that torch.save did not write; unpack it, if the weights are within. It holds "
        f"{', '.join(names[:3]) or 'nothing'}{', ...' if len(names) > 3 else ''}"
    )


def _foreign(path: Path, what: str) -> str:
    return f"{path}: {what}{'' if 'unpack' in what else f'. {_CONVERT}'}"
