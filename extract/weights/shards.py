"""VISSL's checkpoints in several files, which a small file lists: in shards or in slices.

A shard has, for every module that FSDP wraps, one GPU's piece of one or several flat parameters, and what those are
made of: names, shapes, and how many numbers pad the piece. A slice is one parameter of the whole model.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featbench.extract.errors import WeightsError

_MOST_BYTES_OF_A_LIST = 1 << 24
_LISTS = ("shard_list", "slice_list")


def shard_files(path: Path) -> tuple[Path, ...]:
    """Files of a list of shards or slices, in order, beside it or where it says; none if the file is not such a list.

    Raises
    ------
    WeightsError
        If one of them does not exist.
    """
    content = _list_in(path)
    return () if content is None else _listed_files(content, path)


def _listed_files(content: Mapping[str, Any], path: Path) -> tuple[Path, ...]:
    is_sliced = content["type"] == "slice_list"
    try:
        listed = [file for _, _, file in _slices(content)] if is_sliced else content["shards"]
        named = [Path(file) for file in listed]
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: not a list of files of weights ({type(error).__name__}: {error})") from error
    what = "slices" if is_sliced else "shards"
    files = tuple(_found(each, path) for each in named)
    missing = [str(file) for file in files if not file.is_file()]
    if missing or not files:
        raise WeightsError(
            f"{path}: lists {len(files):,} {what}, and {len(missing):,} are missing: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
            + (f". Copy their folder, {files[0].parent.name}, beside the list" if is_sliced and files else "")
        )
    return files


def _found(file: Path, listed_in: Path) -> Path:
    """Where a listed file is: beside the list or in the folder of its slices, however moved, or where the list says."""
    folder = listed_in.parent
    beside = (folder, folder / f"{listed_in.stem}_layers", folder / file.parent.name)
    return next((each / file.name for each in beside if (each / file.name).is_file()), folder / file)


def _list_in(path: Path) -> Mapping[str, Any] | None:
    """The content of a list of files; None for other checkpoints, of which little is read."""
    if path.stat().st_size > _MOST_BYTES_OF_A_LIST or not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            pickled = archive.read(names[0]) if names else b""
        if not any(kind.encode() in pickled for kind in _LISTS):
            return None
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # reading it as weights says what is wrong
        return None
    return content if isinstance(content, Mapping) and content.get("type") in _LISTS else None


def _slices(content: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For each parameter: "trunk" or "heads", its name, and the file that has it."""
    if "classy_state_dict" not in content:  # older lists, of trunks alone
        return [("trunk", name, file) for name, file in content["layers"].items()]
    model = content["classy_state_dict"]["base_model"]["model"]
    return [(part, name, file) for part in ("trunk", "heads") for name, file in model.get(part, {}).items()]


def refuse_part(content: Any, where: str) -> None:
    """Refuse one shard or one slice alone.

    Raises
    ------
    WeightsError
    """
    kind = content.get("type") if isinstance(content, Mapping) else None
    if kind == "shard":
        raise WeightsError(f"{where}: one of several shards. Give the file that lists them, beside it, without _shard0")
    if kind == "slice":
        raise WeightsError(
            f"{where}: one parameter of a checkpoint in slices. Give the file that lists them, beside this folder: "
            f"{Path(where).parent.name.removesuffix('_layers')}.torch"
        )


def joined(path: Path, read: Callable[[Path], Any]) -> dict[str, Any] | None:
    """Join the files of a list into the checkpoint that VISSL would have saved without FSDP; None if it is no list.

    Parameters
    ----------
    path : Path
        The list.
    read : callable
        Reads one file. If it maps files to memory, as `torch.load` does, so are the parameters of slices.

    Raises
    ------
    WeightsError
        If a shard lacks its description, the pieces do not add up, or a slice is none.
    """
    content = _list_in(path)
    if content is None:
        return None
    files = _listed_files(content, path)
    if content["type"] == "slice_list":
        return _joined_slices(_slices(content), files, read)
    return _joined_shards([read(file) for file in files], str(path))


def _joined_slices(
    listed: Sequence[tuple[str, str, str]], files: Sequence[Path], read: Callable[[Path], Any]
) -> dict[str, Any]:
    model: dict[str, dict[str, Tensor]] = {"trunk": {}, "heads": {}}
    for (part, name, _), file in zip(listed, files, strict=True):
        piece = read(file)
        if not (
            isinstance(piece, Mapping) and piece.get("type") == "slice" and isinstance(piece.get("weight"), Tensor)
        ):
            raise WeightsError(f"{file}: not one parameter of a checkpoint in slices, though listed as {name}")
        model[part][name] = piece["weight"]
    return {"classy_state_dict": {"base_model": {"model": model}}}


def _joined_shards(shards: Sequence[Any], where: str) -> dict[str, Any]:
    try:
        parts = [shard["classy_state_dict"]["base_model"] for shard in shards]
        models, described = [part["model"] for part in parts], [part["meta"] for part in parts]
        model: dict[str, Any] = {
            "trunk": _joined([each["trunk"] for each in models], [each["trunk"] for each in described])
        }
        heads = models[0].get("heads", {})
        if "heads" in described[0]:
            model["heads"] = {
                f"{index}.{name}": tensor
                for index in range(len(described[0]["heads"]))
                for name, tensor in _joined(
                    [each["heads"][index] for each in models], [each["heads"][index] for each in described]
                ).items()
            }
        elif isinstance(heads, Mapping):
            model["heads"] = dict(heads)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(
            f"{where}: its {len(shards)} shards can't be joined ({type(error).__name__}: {error})"
        ) from error
    return {"classy_state_dict": {"base_model": {"model": model}}}


def _joined(pieces: Sequence[Mapping[str, Tensor]], described: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    whole: dict[str, Tensor] = {}
    of_ranks = [list(_flat_parameters(each)) for each in described]
    for same in zip(*of_ranks, strict=True):
        path, key, _, names, shapes, is_whole = same[0]
        flat = [piece[path + key] for piece in pieces]
        cut = [part[: len(part) - padding] for part, (_, _, padding, *_) in zip(flat, same, strict=True)]
        numbers = cut[0] if is_whole else torch.cat(cut)
        counts = [torch.Size(shape).numel() for shape in shapes]
        for name, part, shape in zip(names, torch.split(numbers, counts), shapes, strict=True):
            whole[path + name] = part.view(shape)
    for each in described[0]["param_metadata"]:
        whole |= {target: whole[source] for source, target in each.get("shared_param_info", ())}
    return whole | {name: pieces[0][name] for name in described[0].get("buffer_names", ()) if name in pieces[0]}


def _flat_parameters(
    described: Mapping[str, Any],
) -> Iterator[tuple[str, str, int, Sequence[str], Sequence[Any], bool]]:
    """For each flat parameter: the module's path, its name, padding, names, shapes, and whether a rank has it all."""
    for each in described["param_metadata"]:
        path = f"{each['fsdp_path']}." if each["fsdp_path"] else ""
        if "params" in each:
            for key, of in each["params"].items():
                is_whole = bool(each.get("no_broadcast_optim_state"))
                yield path, key, int(of["padding"]), of["names"], of["shapes"], is_whole
        elif each["is_flat"]:  # of fairscale before 0.4.2
            yield path, "flat_param_0", int(each["num_padded"][0]), each["param_names"], each["param_shapes"], False
        else:
            for name, shape, padding in zip(each["param_names"], each["param_shapes"], each["num_padded"], strict=True):
                yield path, name, int(padding), [name], [shape], False
