"""Reading layers as people write them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from featbench.store import DamagedError, LayerSpec, StoreError
from featbench.store.layers import LONGEST_NAME, checked_name, layers_of, split_layers


@pytest.mark.parametrize(
    "spec",
    [
        "res4:AvgPool2d(8,3,0)",
        "res4:AvgPool2d((8,8),3,0)",
        "res4:AvgPool2d([8, 8], 3, 0)",
        "res4:AvgPool2d(8x8,3)",
        ["res4", ["AvgPool2d", [[8, 8], 3, 0]]],
        ("res4", ("AvgPool2d", ([8], 3, 0))),
    ],
)
def test_all_spellings_of_a_layer_mean_the_same(spec: list[Any] | str | tuple[Any, ...]) -> None:
    assert LayerSpec.of(spec) == LayerSpec.of("res4:AvgPool2d(8,3,0)")


@pytest.mark.parametrize("text", ["res5", "res4:AvgPool2d(8,3,0)", "a=res4:MaxPool2d(2x3,1,0)", "x:Identity()", "n=x"])
def test_a_layer_reads_back_as_it_is_written(text: str) -> None:
    assert str(LayerSpec.of(text)) == text
    assert LayerSpec.of(str(LayerSpec.of(text))) == LayerSpec.of(text)


def test_a_tap_with_two_poolings_makes_two_layers() -> None:
    layers = layers_of(["res4", "res4:AvgPool2d(8,3,0)", "res4:Identity", "res4"])
    assert [layer.name for layer in layers] == ["res4", "res4.AvgPool2d_8_3_0", "res4.Identity"]


def test_commas_in_brackets_do_not_separate_layers() -> None:
    assert split_layers("a:AvgPool2d((8,8),3,0), b,c:Identity") == ["a:AvgPool2d((8,8),3,0)", "b", "c:Identity"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("res4:AvgPol2d(8)", "Did you mean AvgPool2d"),
        ("res4:AvgPool2d()", "1 to 3 arguments"),
        ("res4:AvgPool2d(1,2,3,4)", "1 to 3 arguments"),
        ("res4:AdaptiveAvgPool2d(1,2)", "1 to 1 arguments"),
        ("res4:AvgPool2d(0)", "positive"),
        ("res4:AvgPool2d(a)", "not a number"),
        ("res4:AvgPool2d(4,4,3)", "half the kernel"),
        ("labels", "cannot be the name"),
        ("a/b", "cannot be the name"),
        ("a:b:c", "cannot read"),
        (7, "a layer is written as"),
        (["res4", 7], "a layer is written as"),
        (["res4", ["AvgPool2d", [8], 3]], "a layer is written as"),
        (["res4", []], "a layer is written as"),
        (["res4", ["AvgPool2d", [["a", "b"]]]], r"AvgPool2d's kernel must be a number or a pair of numbers; got \['a'"),
        (["res4", ["AvgPool2d", [8, [1, 2, 3]]]], "AvgPool2d's stride must be a number or a pair of numbers"),
        (["res4", ["AvgPool2d", ["8"]]], "must be a number or a pair of numbers; got '8'"),
        (["res4", ["AvgPool2d", [True]]], "must be a number or a pair of numbers; got True"),
        (["res4", ["AvgPool2d", [2.5]]], "must be a number or a pair of numbers; got 2.5"),
        ("n" * (LONGEST_NAME + 1), f"at most {LONGEST_NAME},"),
        ("n" * 80 + "/", r"'n{77}\.\.\.' cannot be the name"),
        ("n" * 79 + "/", "'n{79}/' cannot be the name"),
    ],
)
def test_an_invalid_layer_is_refused_with_the_reason(
    spec: int | list[int | list[Any] | str] | str, message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        LayerSpec.of(spec)


@pytest.mark.parametrize(
    ("args", "pairs"),
    [
        ([4], [(4, 4), (4, 4), (0, 0)]),
        ([[4, 6]], [(4, 6), (4, 6), (0, 0)]),
        ([[4, 6], 1], [(4, 6), (1, 1), (0, 0)]),
        ([[4, 6], [1, 2], [2, 3]], [(4, 6), (1, 2), (2, 3)]),
    ],
)
def test_windows_are_adjacent_without_padding_by_default(
    args: list[int | list[int]], pairs: list[tuple[int, int]]
) -> None:
    """As in torch: the stride is the kernel, the padding 0 and at most half the kernel in each direction."""
    for op in ("AvgPool2d", "MaxPool2d"):
        assert list(LayerSpec.of(["res4", [op, args]]).pooling.args) == pairs


@pytest.mark.parametrize(
    ("kernel", "padding"), [((4, 6), (3, 3)), ((4, 6), (2, 4)), ((1, 1), (1, 0)), ((3, 3), (2, 2))]
)
@pytest.mark.parametrize("op", ["AvgPool2d", "MaxPool2d"])
def test_padding_beyond_half_the_kernel_is_refused_as_torch_does(
    op: str, kernel: tuple[int, int], padding: tuple[int, int]
) -> None:
    """Torch would say so only after the model has run."""
    torch = pytest.importorskip("torch")
    layer = getattr(torch.nn, op)(kernel, 1, padding)
    with pytest.raises(RuntimeError, match="pad should be at most half"):
        layer(torch.zeros(1, 1, 8, 8))
    message = f"pooling {op}: padding may be at most half the kernel; got {padding} for {kernel}"
    with pytest.raises(StoreError, match=re.escape(message)):
        LayerSpec.of(["res4", [op, [list(kernel), 1, list(padding)]]])


def test_the_longest_name_is_accepted() -> None:
    assert LayerSpec.of("n" * LONGEST_NAME).name == "n" * LONGEST_NAME


def test_an_operation_without_arguments_needs_no_list_of_them() -> None:
    assert LayerSpec.of(["res4", ["Identity"]]) == LayerSpec.of(["res4", "Identity"]) == LayerSpec.of("res4:Identity")


@pytest.mark.parametrize("name", ["res5", "labels", "res4.AvgPool2d_8_3_0", "_x-1"])
def test_valid_names_pass(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/a", "a\0", "zarr.json", ".hidden", None, 7, ["a"]])
def test_a_name_that_could_lead_elsewhere_is_damage(name: Any) -> None:
    with pytest.raises(DamagedError, match="not a name that this program writes"):
        checked_name(name)


def test_two_layers_of_one_name_are_refused() -> None:
    with pytest.raises(StoreError, match="two layers are called 'a'"):
        layers_of(["a=res4", "a=res5"])
