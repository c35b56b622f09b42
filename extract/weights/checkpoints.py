"""Reading checkpoint files without running code that they may contain."""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featbench.extract.errors import WeightsError
from featbench.extract.weights.formats import damaged_member, format_of
from featbench.extract.weights.shards import joined, refuse_part, shard_files
from featbench.store import abbreviate
from featbench.store.documents import DocumentError, parse_json

__all__ = ["HUB_FILES", "WeightsError", "read_checkpoint", "sha256_of_files", "sha256_of_tensors", "weight_files"]

HUB_FILES = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
    "open_clip_model.safetensors", "open_clip_pytorch_model.bin",
)  # fmt: skip
"""Files of weights in a folder from Hugging Face's hub; the first that exists is read."""


def weight_files(path: Path) -> tuple[Path, ...]:
    """Return the files that hold the weights: the path itself, or those of a hub folder, in order.

    Raises
    ------
    WeightsError
        If there are none.
    """
    if path.is_dir():
        found = next((path / name for name in HUB_FILES if (path / name).is_file()), None)
        if found is None:
            there = sorted(each.name for each in path.iterdir())
            listing = path.with_name(f"{path.name.removesuffix('_layers')}.torch")
            if path.name.endswith("_layers") and listing.is_file():
                raise WeightsError(f"{path}: the slices of a checkpoint. Give the file that lists them: {listing}")
            raise WeightsError(
                f"{path}: a folder without {', '.join(HUB_FILES[:3])}; give the file itself. It contains "
                f"{abbreviate(there, show=8) or 'nothing'}"
            )
        path = found
    if not path.is_file():
        raise WeightsError(f"{path}: no such file, given as weights")
    if path.name.endswith(".index.json"):
        try:
            shards = sorted(set(parse_json(path.read_text(), where=path.name)["weight_map"].values()))
            outside = [shard for shard in shards if Path(shard).name != shard]
        except (DocumentError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise WeightsError(f"{path}: not an index of weights ({type(error).__name__}: {error})") from error
        if outside or not shards:
            raise WeightsError(f"{path}: names files that are not beside it: {abbreviate(outside) or 'none'}")
        return tuple(path.parent / shard for shard in shards)
    return (path, *shard_files(path))


def read_checkpoint(path: Path, *, trust: bool = False) -> Any:
    """Read the contents of a checkpoint.

    Parameters
    ----------
    path : Path
        .pth, .pt, .bin, .ckpt, .safetensors, or a folder from a hub.
    trust : bool
        Run the code that the file contains, if it needs that. Only for files from authors whom you trust.

    Raises
    ------
    WeightsError
        If the file is missing, empty, damaged, not a checkpoint, or needs code to be run.
    """
    files = weight_files(path)
    if len(files) == 1:
        content = _read(files[0], trust=trust)
        refuse_part(content, str(files[0]))
        return content
    if (whole := joined(files[0], partial(_read, trust=trust))) is not None:
        return whole
    merged: dict[str, Any] = {}
    for file in files:
        if not file.is_file():
            raise WeightsError(f"{file}: missing, one of the {len(files)} files of {path}")
        shard = _read(file, trust=trust)
        if not isinstance(shard, dict) or merged.keys() & shard.keys():
            raise WeightsError(f"{file}: not part of the weights of {path}: not a dictionary, or its names occur twice")
        merged |= shard
    return merged


def sha256_of_files(path: Path) -> str:
    """Digest of the bytes of a checkpoint, of all its files if there are several."""
    digests = []
    for file in weight_files(path):
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def sha256_of_tensors(state: Mapping[str, Tensor]) -> str:
    """Digest of names, types, shapes and values, in order."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path, *, trust: bool) -> Any:
    size = path.stat().st_size
    if size == 0:
        raise WeightsError(f"{path}: empty (0 bytes); copy it again")
    try:
        kind = format_of(path)
        if kind == "npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        if kind == "safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        # Memory-mapped, so that only the tensors that are used are copied, into the model.
        mapped = zipfile.is_zipfile(path)
        damaged = damaged_member(path) if mapped else ""
        if damaged:
            raise WeightsError(f"{path}: damaged: the checksum of {damaged} in it does not match. Copy it again.")
        return torch.load(path, map_location="cpu", weights_only=not trust, mmap=mapped)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        if trust:
            raise WeightsError(f"{path}: damaged, or not a checkpoint ({error})") from error
        raise WeightsError(
            f"{path}: cannot be read as plain tensors{_code_within(path, str(error))}. Loading it would run code that "
            f"it contains; none was run. If you trust whoever made it, --trust-checkpoint loads it and "
            f"executes that code; or have them save the state dict alone, with torch.save(model.state_dict(), ...)."
        ) from error
    except Exception as error:  # torch and safetensors raise many kinds for damaged files, some without a text
        code = isinstance(error, AttributeError | ImportError)
        raise WeightsError(
            f"{path}: {'needs code that is not installed' if code else 'damaged, truncated or not a checkpoint'} "
            f"({size:,} bytes; {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no text'}). "
            f"{'Install what it was saved with, or save its state dict alone.' if code else 'Copy it again.'}"
        ) from error


def _code_within(path: Path, refusal: str) -> str:
    """Name the classes and functions that a file needs: all of them, or the first if torch can't list them."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # not possible for legacy files
        names = re.findall(r"GLOBAL ([\w.]+)", refusal)[:1]
    return f": it needs {abbreviate(sorted(names), show=12)}" if names else ""
