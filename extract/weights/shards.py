"""VISSL's sharded checkpoints: parameters that FSDP has flattened and cut into one piece for each GPU, joined again.

A small file lists the shards. Each shard has, for every module that FSDP wraps, its piece of one or several flat
parameters, and what those are made of: names, shapes, and how many numbers pad the piece.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featbench.extract.errors import WeightsError

_MOST_BYTES_OF_A_LIST = 1 << 20


def shard_files(path: Path) -> tuple[Path, ...]:
    """Files of a list of shards, in order, beside it or where it says; none if the file is not such a list.

    Raises
    ------
    WeightsError
        If one of them does not exist.
    """
    content = _list_in(path)
    if not isinstance(content, Mapping) or content.get("type") != "shard_list":
        return ()
    named = [Path(str(name)) for name in content.get("shards", ())]
    files = tuple(beside if (beside := path.parent / each.name).is_file() else path.parent / each for each in named)
    missing = [str(file) for file in files if not file.is_file()]
    if missing or not files:
        raise WeightsError(
            f"{path}: lists {len(files)} shards, and {len(missing)} are missing: {', '.join(missing[:3])}"
        )
    return files


def _list_in(path: Path) -> Any:
    if path.stat().st_size > _MOST_BYTES_OF_A_LIST or not zipfile.is_zipfile(path):
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # reading it as weights says what is wrong
        return None


def refuse_part(content: Any, where: str) -> None:
    """Refuse one shard alone, and checkpoints in slices.

    Raises
    ------
    WeightsError
    """
    kind = content.get("type") if isinstance(content, Mapping) else None
    if kind == "shard":
        raise WeightsError(f"{where}: one of several shards. Give the file that lists them, beside it, without _shard0")
    if kind in ("slice", "slice_list"):
        raise WeightsError(
            f"{where}: a checkpoint in slices. Give the sharded one that it was made from, or convert it with VISSL's "
            f"extra_scripts/convert_sharded_checkpoint.py"
        )


def joined(shards: Sequence[Any], where: str) -> dict[str, Any]:
    """Join shards into the checkpoint that VISSL would have saved without FSDP.

    Raises
    ------
    WeightsError
        If a shard lacks its description, or the pieces do not add up.
    """
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
