"""Loading weights so that a wrong load can't give a number.

Before loading, every parameter and buffer is set to NaN; a file must then fill each one that the
asked-for layers use. What is not filled is refused by name, and would show as NaN in any case.
Files are read without running code that they may carry.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from store import BenchError, nearest, some

PREFIXES = (
    "module.", "backbone.", "encoder.", "model.", "base_encoder.", "encoder_q.", "teacher.", "student.", "trunk.",
)  # fmt: skip
"""Beginnings of names that training wrappers add; tried when a file does not fit, to name the cure."""


class WeightsError(BenchError):
    """Weights can't be read, or don't fit the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """How the names of a file and of a model matched."""

    loaded: int
    missing: tuple[str, ...]
    """Parameters of the model that the file lacks; none that the layers use."""

    unexpected: tuple[str, ...]
    """Names of the file that the model lacks."""

    reshaped: tuple[str, ...] = ()
    """Names of both with different shapes; none that the layers use."""

    def __str__(self) -> str:
        parts = [f"{self.loaded} tensors loaded"]
        for what, names in (
            ("missing (behind the last tap)", self.missing),
            ("of another shape (behind the last tap)", self.reshaped),
            ("not in the model", self.unexpected),
        ):
            if names:
                parts.append(f"{len(names)} {what}: {some(names)}")
        return "; ".join(parts)


def read_state_dict(path: Path, *, key: str | None = None, remove_prefix: str = "") -> dict[str, Tensor]:
    """Read a state dict from a file, without executing anything that it carries.

    Parameters
    ----------
    path : Path
        .pth, .pt or .safetensors.
    key : str, optional
        Where the state dict lies within the file, dotted; by default the file is one, or holds one
        under `state_dict` or `model`.
    remove_prefix : str
        Keep the names that begin with this, without it.

    Raises
    ------
    WeightsError
        If the file is absent, empty, damaged, no checkpoint, or needs code to be run.
    """
    content = _read(path)
    if key is not None:
        for part in key.split("."):
            if not isinstance(content, Mapping) or part not in content:
                known = [str(name) for name in content] if isinstance(content, Mapping) else []
                raise WeightsError(f"{path}: no {key!r} in it. {nearest(part, known)}")
            content = content[part]
    elif isinstance(content, Mapping):
        for usual in ("state_dict", "model"):
            if isinstance(content.get(usual), Mapping):
                content = content[usual]
                break
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"{path}: holds a {type(content).__name__}, not a state dict. Say where it lies with weights.key"
        )
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(
            f"{path}: no tensors at its top. {nearest('state_dict', [str(name) for name in content])} "
            f"Say where the state dict lies with weights.key=NAME"
        )
    if remove_prefix:
        kept = {name.removeprefix(remove_prefix): t for name, t in tensors.items() if name.startswith(remove_prefix)}
        if not kept:
            raise WeightsError(f"{path}: no name begins with {remove_prefix!r}. They are {some(list(tensors))}")
        return kept
    return tensors


def poison(trunk: nn.Module) -> None:
    """Set every floating-point parameter and buffer to NaN, so that none is used unless it is loaded."""
    with torch.no_grad():
        for tensor in [*trunk.parameters(), *trunk.buffers()]:
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))


def load_strictly(trunk: nn.Module, state: Mapping[str, Tensor], *, used: set[str], where: str) -> LoadReport:
    """Fill a poisoned trunk from a state dict.

    Parameters
    ----------
    trunk : nn.Module
        Its tensors are replaced by the file's.
    state : mapping of str to Tensor
        As `read_state_dict` gives it.
    used : set of str
        Names of the modules that matter (`TappedTrunk.modules_used`); all of theirs must be filled.
    where : str
        What to call the file in messages.

    Raises
    ------
    WeightsError
        With counts of what matched, and the likeliest prefix in the way.
    """
    wanted = {name: tensor for name, tensor in trunk.state_dict().items() if not name.endswith("num_batches_tracked")}
    fitting = {name: state[name] for name in wanted if name in state and state[name].shape == wanted[name].shape}
    missing = [name for name in wanted if name not in state]
    reshaped = [name for name in wanted if name in state and name not in fitting]
    faults = [name for name in missing + reshaped if name.rpartition(".")[0] in used]
    if faults:
        raise WeightsError(_does_not_fit(wanted, state, missing, reshaped, where))
    filled = trunk.state_dict()  # with its metadata, which some models ask for
    filled.update(fitting)
    trunk.load_state_dict(filled)
    unexpected = [name for name in state if name not in wanted and not name.endswith("num_batches_tracked")]
    return LoadReport(
        loaded=len(fitting), missing=tuple(missing), unexpected=tuple(unexpected), reshaped=tuple(reshaped)
    )


def torchvision_weights(trunk: str, name: str) -> Any:
    """Find torchvision's own weights by name, such as IMAGENET1K_V2 or DEFAULT; nothing is downloaded yet.

    Raises
    ------
    WeightsError
        If torchvision has none of that name for this trunk.
    """
    known = torchvision.models.get_model_weights(trunk)
    short = name.split(".")[-1].removeprefix("torchvision:")
    if short not in known.__members__:
        raise WeightsError(f"torchvision has no weights {name!r} for {trunk}. {nearest(short, known.__members__)}")
    return known[short]


def download(weights: Any) -> dict[str, Tensor]:
    """Fetch torchvision's weights, or take them from torch's cache.

    Raises
    ------
    WeightsError
        If there is no network and nothing in the cache.
    """
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        cache = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        raise WeightsError(
            f"{weights}: cannot be downloaded ({error}). Fetch {weights.url} elsewhere and put it at {cache}, "
            f"or give a file with --weights FILE."
        ) from error


def sha256_of_file(path: Path) -> str:
    """Digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_tensors(state: Mapping[str, Tensor]) -> str:
    """Digest of names, types, shapes and values, in order."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> Any:
    if not path.is_file():
        raise WeightsError(f"{path}: no such file, given as weights")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path}: empty (0 bytes); copy it again")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        start = path.open("rb").read(256).lstrip().lower()
        if start.startswith((b"<!doctype", b"<html", b"<?xml")):
            raise WeightsError(f"{path}: a web page, not weights; the download went wrong") from error
        raise WeightsError(
            f"{path}: cannot be read as plain tensors{_code_within(path)}. Loading it would run code that it carries. "
            f"Save its state dict alone, with torch.save(model.state_dict(), ...), and give that file."
        ) from error
    except Exception as error:  # torch and safetensors raise many kinds for damaged files, some with no text
        size = path.stat().st_size
        raise WeightsError(
            f"{path}: damaged, truncated or no checkpoint ({size:,} bytes; {type(error).__name__}: {error}). "
            f"Copy it again."
        ) from error


def _code_within(path: Path) -> str:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # legacy files can't be listed
        return ""
    return f": it asks for {some(sorted(names))}" if names else ""


def _does_not_fit(
    wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], missing: list[str], reshaped: list[str], where: str
) -> str:
    matched = len(wanted) - len(missing) - len(reshaped)
    lines = [f"{where} does not fit the model: {matched} of its {len(wanted)} parameters and buffers were matched"]
    if missing:
        lines.append(f"missing from the file: {len(missing)}, such as {some(missing)}")
    for name in reshaped[:3]:
        lines.append(f"another shape: {name} is {tuple(state[name].shape)}, the model has {tuple(wanted[name].shape)}")
    leftover = [name for name in state if name not in wanted]
    if leftover:
        lines.append(f"in the file but not in the model: {len(leftover)}, such as {some(leftover)}")
    prefix = _likeliest_prefix(wanted, state)
    if prefix:
        count = sum(name.removeprefix(prefix) in wanted for name in state if name.startswith(prefix))
        lines.append(f"{count} names would match without their prefix: add weights.remove_prefix={prefix}")
    else:
        lines.append("Is this another model's file? Check model.trunk, weights.key and weights.remove_prefix.")
    return "\n  ".join(lines)


def _likeliest_prefix(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    candidates = {name[: -len(end)] for end in list(wanted)[:3] for name in state if name.endswith(f".{end}")}
    candidates |= {a + b for a in ("", *PREFIXES) for b in PREFIXES}
    counts = {
        prefix: sum(name.startswith(prefix) and name.removeprefix(prefix) in wanted for name in state)
        for prefix in sorted(candidates)
        if prefix
    }
    best = max(counts, key=lambda prefix: counts[prefix], default="")
    already = sum(name in wanted for name in state)
    return best if best and counts[best] > already else ""
