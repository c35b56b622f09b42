"""Every kind of file that people give as weights is read or named; damaged ones give one message and no numbers."""

from __future__ import annotations

import gzip
import json
import pickle
import random
import shlex
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from featbench.extract.config import WeightsConfig
from featbench.extract.errors import WeightsError
from featbench.extract.model.taps import TappedTrunk
from featbench.extract.model.trunks import build_trunk
from featbench.extract.weights.checkpoints import read_checkpoint
from featbench.extract.weights.formats import format_of
from featbench.extract.weights.loading import load_weights
from featbench.store import BenchError
from featbench.store.layers import layers_of

VIT = {"dim": 24, "depth": 1, "num_heads": 2, "patch_size": 8, "image_size": 16}
IMAGE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return build_trunk("vit", VIT, seed=5).state_dict()


def features(path: Path) -> torch.Tensor:
    """The features of a ViT with the weights of a file, as the pipeline loads them."""
    taps = TappedTrunk(build_trunk("vit", VIT, seed=6), name="vit", layers=layers_of(["flatten"]))
    taps.probe(IMAGE)
    load_weights(taps, IMAGE, WeightsConfig(file=path))
    return taps(IMAGE)["flatten"]


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "w.pth")


def zipped(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("w.h5", lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "an HDF5 file"),
        ("w.pth", lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "an HDF5 file"),
        ("w.onnx", lambda p: p.write_bytes(b"\x08\x07\x12\x07pytorch\x1a\x052.0.0"), "an ONNX model"),
        ("w.bin", lambda p: p.write_bytes(b"\x08\x07\x12\x07pytorch\x1a\x052.0.0"), "an ONNX model"),
        ("w.msgpack", lambda p: p.write_bytes(b"\x82\xa6params\x81\xa1a\x01"), "a msgpack file"),
        ("w.gguf", lambda p: p.write_bytes(b"GGUF\x03" + bytes(40)), "a GGUF file"),
        ("w.tflite", lambda p: p.write_bytes(b"\x1c\0\0\0TFL3" + bytes(40)), "TensorFlow Lite"),
        ("model.ckpt.index", lambda p: p.write_bytes(bytes(40) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"), "of TensorFlow"),
        ("model.ckpt.data-00000-of-00001", lambda p: p.write_bytes(bytes(range(200))), "of TensorFlow"),
        ("checkpoint", lambda p: p.write_text('model_checkpoint_path: "model.ckpt"'), "of TensorFlow"),
        ("w.npy", lambda p: np.save(p, np.zeros(3)), "one NumPy array"),
        ("w.pth.gz", lambda p: p.write_bytes(gzip.compress(b"x")), "compressed by gzip: unpack it"),
        ("w.pth.tar", tar, "a tar archive: unpack it"),
        ("w.zip", lambda p: zipped(p, "weights/w.pth"), "a zip archive that torch.save did not write; unpack it"),
        ("w.keras", lambda p: zipped(p, "config.json", "model.weights.h5"), "a model of Keras"),
        ("w.pt2", lambda p: zipped(p, "w/archive_format", "w/models/model.json"), "an exported program"),
        ("w.pkl", lambda p: p.write_bytes(pickle.dumps({"a": np.zeros(3)})), "a Python pickle that torch.save did not"),
        ("w.pth", lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1"), "git lfs pull"),
        ("w.safetensors", lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
        ("w.safetensors", lambda p: p.write_text("<!DOCTYPE html><html>"), "a web page"),
        ("w.pth", lambda p: p.write_text('{"error": "not found"}'), "a text file, not weights.*not found"),
        ("w.pth", lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n"), "an image"),
        ("w.pth", lambda p: p.write_bytes(b""), "empty"),
        ("w.pth", lambda p: p.write_bytes(bytes(100)), "not a checkpoint"),
        ("w.npz", lambda p: np.savez(p, **{"embedding/kernel": np.zeros(3)}), "the names of JAX and Flax"),
        ("w", lambda p: p.mkdir(), "a folder without model.safetensors.*It contains nothing"),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_named(tmp_path: Path, name: str, write: Callable[..., Any], message: str) -> None:
    write(tmp_path / name)
    with pytest.raises(WeightsError, match=message) as error:
        read_checkpoint(tmp_path / name)
    assert "Copy it again" not in str(error.value) or message == "empty"


def test_arrays_under_the_models_names_are_read_from_an_npz(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    np.savez(tmp_path / "w.npz", **{name: tensor.numpy() for name, tensor in state.items()})
    torch.save(state, tmp_path / "w.pth")
    assert torch.equal(features(tmp_path / "w.npz"), features(tmp_path / "w.pth"))


def test_safetensors_are_recognized_by_their_bytes(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "w.bin")
    torch.save(state, tmp_path / "w.pth")
    assert torch.equal(features(tmp_path / "w.bin"), features(tmp_path / "w.pth"))


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images) * 2


def test_the_command_advised_for_torchscript_saves_its_state_dict(tmp_path: Path) -> None:
    model = Doubled().eval()
    path = tmp_path / "a script's.pt"
    torch.jit.trace(model, torch.zeros(1, 3, 8, 8)).save(path)
    with pytest.raises(WeightsError, match="a TorchScript archive") as error:
        read_checkpoint(path)
    command = shlex.split(str(error.value).partition("instead: ")[2])
    subprocess.run([sys.executable, *command[1:]], check=True, timeout=120, capture_output=True)
    saved = read_checkpoint(tmp_path / "a script's_state.pth")
    assert torch.equal(saved["conv.weight"], model.conv.weight)


def test_a_flipped_bit_in_the_numbers_of_a_file_is_found(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    """`torch.load` does not compare the checksums that `torch.save` writes."""
    torch.save(state, tmp_path / "w.pth")
    data = bytearray((tmp_path / "w.pth").read_bytes())
    data[data.index(state["blocks.0.attn.qkv.weight"].numpy().tobytes()) + 1000] ^= 1
    (tmp_path / "w.pth").write_bytes(data)
    with pytest.raises(WeightsError, match=r"damaged: the checksum of \w+/data/\d+ in it does not match"):
        features(tmp_path / "w.pth")


def test_a_file_without_checksums_is_read(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert features(tmp_path / "w.pth").isfinite().all()


def contents(state: dict[str, torch.Tensor]) -> Iterator[Any]:
    """What stands in checkpoints besides tensors, and structures that no one expects."""
    first = next(iter(state))
    yield from (
        [], {}, None, 3, "text", {"state_dict": {}}, {"state_dict": None}, {"state_dict": [1]}, {1: 2},
        {"model": state, 3: {"x": torch.ones(1)}}, {"state_dict": {"state_dict": state}},
        {"": state}, {"": torch.ones(1)},
        state | {first: torch.ones(())}, state | {first: torch.empty(0)}, state | {first: None},
        state | {first: state[first].to_sparse()}, state | {first: state[first].expand(2, -1, -1)},
        state | {first: state[first].double()}, {n: t.half() for n, t in state.items()},
        {n.replace("blocks", "encoder.layer"): t for n, t in state.items()},
        {f"{'module.' * 50}{n}": t for n, t in state.items()}, {"/": state}, {"a/b": state}, {"x" * 10_000: state},
        {n: torch.nn.Parameter(t) for n, t in state.items()}, {n: t[None] for n, t in state.items()},
        {"teacher": state, "student": state}, {"teacher": state, "student": None},
        {"encoder.layer.0.attention.attention.query.weight": torch.ones(2, 2),
         "encoder.layer.0.attention.attention.key.weight": torch.ones(3, 1),
         "encoder.layer.0.attention.attention.value.weight": torch.ones(())},
        state | {"pos_embed": torch.ones(1, 5)}, state | {"pos_embed": torch.ones(5, 24)},
        state | {"pos_embed": torch.ones(1, 0, 24)},
        state | {"pos_embed": torch.ones(1, 10, 24, dtype=torch.int64)},
        state | {"pos_embed": torch.ones(1, 1, 24)},
        state | {"cls_token": torch.ones(24)},
        state | {"encoder_q.x": torch.ones(1)},
        {"state_dict": state, "arch": 7, "hyper_parameters": {"num_heads": "2"}},
    )  # fmt: skip


def test_odd_checkpoints_are_loaded_or_refused_by_message(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    """No traceback; what is loaded has the features of the state dict that it holds."""
    torch.save(state, tmp_path / "w.pth")
    right = features(tmp_path / "w.pth")
    loaded = 0
    for content in contents(state):
        torch.save(content, tmp_path / "odd.pth")
        try:
            got = features(tmp_path / "odd.pth")
        except BenchError:
            continue
        else:
            loaded += 1
            assert torch.allclose(got, right, atol=2e-2)
    assert loaded >= 5


def mutated(content: bytes, rng: random.Random) -> bytearray:
    data = bytearray(content)
    kind = rng.randrange(5)
    if kind == 0:
        return data[: rng.randrange(len(data))]
    if kind == 1:
        for _ in range(rng.choice((1, 1, 8))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        start = rng.randrange(len(data))
        del data[start : start + rng.randrange(1, 200)]
    elif kind == 3:
        start = rng.randrange(len(data))
        data[start:start] = rng.randbytes(rng.randrange(1, 200))
    else:
        start = rng.randrange(len(data))
        data[start : start + 64] = rng.randbytes(64)
    return data


def written(folder: Path, state: dict[str, torch.Tensor], how: str) -> Path:
    if how == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "w.safetensors")
        return folder / "w.safetensors"
    if how == "npz":
        np.savez(folder / "w.npz", **{name: tensor.numpy() for name, tensor in state.items()})
        return folder / "w.npz"
    torch.save(state, folder / "w.pth", _use_new_zipfile_serialization=how == "pth")
    return folder / "w.pth"


@pytest.mark.parametrize("how", ["pth", "legacy", "safetensors", "npz"])
def test_damaged_checkpoints_are_refused_by_message(tmp_path: Path, state: dict[str, torch.Tensor], how: str) -> None:
    """Safetensors and legacy files have no checksums: there, a changed number can't be seen."""
    path = written(tmp_path, state, how)
    data, right = path.read_bytes(), features(path)
    rng = random.Random(0)
    refused = 0
    for _ in range(60):
        path.write_bytes(mutated(data, rng))
        try:
            got = features(path)
        except BenchError as error:
            refused += str(path) in str(error)
        else:
            assert how in ("safetensors", "legacy") or torch.equal(got, right)
    assert refused >= 20


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_damaged_files_of_a_hub_folder_are_refused_by_message(
    tmp_path: Path, state: dict[str, torch.Tensor], name: str
) -> None:
    save_file({n: t.contiguous() for n, t in state.items()}, tmp_path / "a.safetensors")
    config = {"model_type": "vit", "hidden_size": 24, "num_attention_heads": 2, "patch_size": 8, "image_size": 16}
    (tmp_path / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-6}))
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, "a.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    right = features(tmp_path)
    data = (tmp_path / name).read_bytes()
    rng = random.Random(1)
    values = ["null", "[]", "{}", "-1", "1e999", '"x"', "[1, 2, 3]", "0", "true", '{"a": ["../x"]}']
    texts = [bytes(mutated(data, rng)) for _ in range(40)]
    texts += [
        json.dumps((config if name == "config.json" else index) | {key: json.loads(value.replace("1e999", "Infinity"))})
        .encode()
        for value in values
        for key in (config if name == "config.json" else index)
    ]  # fmt: skip
    refused = 0
    for text in texts:
        (tmp_path / name).write_bytes(text)
        try:
            got = features(tmp_path)
        except BenchError:
            refused += 1
        else:
            assert torch.allclose(got, right, atol=1e-2)
    assert refused >= 20


@pytest.mark.parametrize("length", [0x80, 0x108, 0x8B1F & ~7, 0x4B50, 0x1480])
def test_a_safetensors_file_is_read_whatever_the_length_of_its_header_looks_like(tmp_path: Path, length: int) -> None:
    """It begins with that length; 0x80, with which pickles begin, is the first byte of one file in 32."""
    file = tmp_path / "w.safetensors"
    least = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    header = json.dumps(least).encode()
    assert len(header) < length
    file.write_bytes(struct.pack("<Q", length) + header.ljust(length) + struct.pack("<2f", 1.0, 2.0))
    assert load_file(file)["a"].tolist() == [1.0, 2.0]
    assert format_of(file) == "safetensors"
    assert format_of(file.rename(tmp_path / "w.bin")) == "safetensors"
