"""VISSL's checkpoints in several files are joined: shards, flattened and padded as FSDP cuts them, and slices."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from featbench.extract.errors import WeightsError
from featbench.extract.model.trunks import build_trunk
from featbench.extract.weights.checkpoints import read_checkpoint, sha256_of_files
from featbench.extract.weights.state_dicts import find_weights
from featbench.extract.weights.strict import load_strictly, names_of
from tests.extract.test_vissl_zoo import seer

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


def slices(path: Path, trunk: State, heads: State, *, old: bool = False) -> Path:
    """As VISSL's convert_sharded_checkpoint.py writes them: a file for each parameter, named by its name's digest."""
    folder = path.with_name(f"{path.stem}_layers")
    folder.mkdir()
    files = {}
    for name, tensor in (trunk | heads).items():
        file = folder / f"{hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()}.torch"
        torch.save({"type": "slice", "weight": tensor}, file)
        files[name] = str(file)
    model = {"trunk": {name: files[name] for name in trunk}, "heads": {name: files[name] for name in heads}}
    content = {"layers": model["trunk"]} if old else {"classy_state_dict": {"base_model": {"model": model}}}
    torch.save({"type": "slice_list", **content}, path)
    return path


def test_slices_give_the_features_of_the_model_that_was_sliced(tmp_path: Path) -> None:
    options = {"depth": 4, "w_0": 8, "w_a": 8.0, "w_m": 2.0, "group_width": 8, "stem_width": 8}
    first, second = (build_trunk("regnet", options, seed=seed) for seed in (1, 2))
    trunk = seer(dict(first.state_dict()))["classy_state_dict"]["base_model"]["model"]["trunk"]
    (tmp_path / "was").mkdir()
    slices(tmp_path / "was" / "model_sliced.torch", trunk, {"0.clf.0.weight": torch.rand(2, 8)})
    (tmp_path / "was").rename(tmp_path / "is")  # the list names absolute paths
    content = read_checkpoint(tmp_path / "is" / "model_sliced.torch")
    found = find_weights(content, wanted=names_of(second), where="w")
    assert "/heads/0.clf.0.weight" in found.tensors
    load_strictly(second, found.tensors, used={name for name, _ in second.named_modules()}, where="w")
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(second(images), first(images))


def test_older_lists_of_slices_are_of_a_trunk(tmp_path: Path) -> None:
    read = read_checkpoint(slices(tmp_path / "old.torch", state(), {}, old=True))
    trunk = read["classy_state_dict"]["base_model"]["model"]["trunk"]
    assert trunk.keys() == state().keys()
    assert all(torch.equal(trunk[name], tensor) for name, tensor in state().items())


def test_slices_that_are_none_are_refused(tmp_path: Path) -> None:
    path = slices(tmp_path / "model.torch", state(), {})
    one, other, *_ = sorted((tmp_path / "model_layers").iterdir())
    with pytest.raises(WeightsError, match=r"one parameter of a checkpoint in slices\..* model\.torch$"):
        read_checkpoint(one)
    with pytest.raises(WeightsError, match=r"the slices of a checkpoint\. .* lists them: .*/model\.torch"):
        read_checkpoint(one.parent)
    torch.save({"weight": torch.ones(3)}, one)
    with pytest.raises(WeightsError, match="not one parameter of a checkpoint in slices, though listed as"):
        read_checkpoint(path)
    one.unlink()
    other.unlink()
    with pytest.raises(WeightsError, match=r"and 2 are missing: .* Copy their folder, model_layers, beside"):
        read_checkpoint(path)
    torch.save({"type": "slice_list", "classy_state_dict": {}}, path)
    with pytest.raises(WeightsError, match="not a list of files of weights"):
        read_checkpoint(path)
