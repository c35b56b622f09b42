"""VISSL's sharded checkpoints are joined as FSDP cuts them: flattened, padded, one piece for each rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from featbench.extract.errors import WeightsError
from featbench.extract.weights.checkpoints import read_checkpoint, sha256_of_files

State = dict[str, Tensor]
GROUPS = ("", "_feature_blocks.res2")
"""Modules that FSDP wraps; the inner one first has its parameters."""


def state() -> State:
    random = torch.Generator().manual_seed(0)
    shapes = {"conv1.weight": (4, 3, 3, 3), "conv1.bias": (4,), "_feature_blocks.res2.f.weight": (5, 4),
              "_feature_blocks.res2.f.bias": (5,)}  # fmt: skip
    return {name: torch.rand(shape, generator=random) for name, shape in shapes.items()}


def cut(whole: State, ranks: int, *, old: bool, prefix: str = "") -> list[tuple[State, dict[str, Any]]]:
    """The piece of each rank, and its description, as fairscale writes them."""
    pieces: list[State] = [{prefix + "bn.running_mean": torch.arange(3.0)} for _ in range(ranks)]
    described: list[dict[str, Any]] = [
        {"param_metadata": [], "buffer_names": [prefix + "bn.running_mean"]} for _ in range(ranks)
    ]
    for group in GROUPS:
        inner = {n.removeprefix(f"{group}."): t for n, t in whole.items() if n.startswith("_feature") is bool(group)}
        flat = torch.cat([tensor.flatten() for tensor in inner.values()])
        size = -(-len(flat) // ranks)
        for rank in range(ranks):
            piece = flat[rank * size : (rank + 1) * size]
            padding = size - len(piece)
            pieces[rank][f"{group}.flat_param_0".lstrip(".")] = torch.nn.functional.pad(piece, (0, padding))
            names, shapes = list(inner), [tensor.shape for tensor in inner.values()]
            numels = [tensor.numel() for tensor in inner.values()]
            if old:
                new = {"fsdp_path": group, "is_flat": True, "num_padded": [padding], "param_names": names,
                       "param_shapes": shapes, "param_numels": numels}  # fmt: skip
            else:
                of = {"names": names, "shapes": shapes, "numels": numels, "padding": padding}
                new = {"fsdp_path": group, "params": {"flat_param_0": of}, "no_broadcast_optim_state": False,
                       "shared_param_info": [(names[0], "shared.weight")] if not group else []}  # fmt: skip
            described[rank]["param_metadata"].append(new)
    return list(zip(pieces, described, strict=True))


def save(folder: Path, ranks: int, *, old: bool = False) -> Path:
    for rank, (piece, described) in enumerate(cut(state(), ranks, old=old)):
        head, of_head = cut(state(), ranks, old=old)[rank]
        model = {"trunk": piece, "heads": [head]}
        base = {"model": model, "meta": {"trunk": described, "heads": [of_head]}}
        content = {"type": "shard", "classy_state_dict": {"base_model": base}}
        torch.save(content, folder / f"model_phase9_shard{rank}.torch")
    names = [f"/gone/model_phase9_shard{rank}.torch" for rank in range(ranks)]
    torch.save({"type": "shard_list", "shards": names}, folder / "model_phase9.torch")
    return folder / "model_phase9.torch"


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 7])
def test_shards_become_the_parameters_that_they_were_cut_from(tmp_path: Path, ranks: int, old: bool) -> None:
    model = read_checkpoint(save(tmp_path, ranks, old=old))["classy_state_dict"]["base_model"]["model"]
    expected = state() | {"bn.running_mean": torch.arange(3.0)}
    expected |= {} if old else {"shared.weight": expected["conv1.weight"]}
    for made in (model["trunk"], {n.removeprefix("0."): tensor for n, tensor in model["heads"].items()}):
        assert made.keys() == expected.keys()
        assert all(torch.equal(made[name], expected[name]) for name in expected)


def test_the_digest_is_that_of_every_shard(tmp_path: Path) -> None:
    path = save(tmp_path, 2)
    before = sha256_of_files(path)
    content = torch.load(tmp_path / "model_phase9_shard1.torch")
    content["classy_state_dict"]["base_model"]["model"]["trunk"]["flat_param_0"][0] += 1
    torch.save(content, tmp_path / "model_phase9_shard1.torch")
    assert sha256_of_files(path) != before


def test_what_cannot_be_joined_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 2)
    with pytest.raises(WeightsError, match="one of several shards. Give the file that lists them"):
        read_checkpoint(tmp_path / "model_phase9_shard0.torch")
    content = torch.load(tmp_path / "model_phase9_shard1.torch")
    content["classy_state_dict"]["base_model"]["model"]["trunk"]["flat_param_0"] = torch.ones(3)
    torch.save(content, tmp_path / "model_phase9_shard1.torch")
    with pytest.raises(WeightsError, match="its 2 shards can't be joined"):
        read_checkpoint(path)
    (tmp_path / "model_phase9_shard1.torch").unlink()
    with pytest.raises(WeightsError, match=r"lists 2 shards, and 1 are missing: /gone/model_phase9_shard1\.torch"):
        read_checkpoint(path)
    torch.save({"type": "slice_list", "classy_state_dict": {}}, tmp_path / "slices.torch")
    with pytest.raises(WeightsError, match="a checkpoint in slices"):
        read_checkpoint(tmp_path / "slices.torch")
