"""Position embeddings belong to a grid of patches, not to a number of them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed  # type: ignore[attr-defined]

from featbench.extract.config import WeightsConfig
from featbench.extract.errors import WeightsError
from featbench.extract.model.taps import TappedTrunk
from featbench.extract.model.trunks import build_trunk
from featbench.extract.weights.loading import LoadedWeights, load_weights
from featbench.store.layers import layers_of

SMALL = {"dim": 24, "depth": 1, "num_heads": 2, "patch_size": 4}
KINDS = {
    "class token": {},
    "none": {"class_token": False},
    "registers": {"register_tokens": 2},
    "class token without a position": {"class_position": False},
}


def loaded(
    tmp_path: Path,
    saved_for: tuple[int, int],
    image_size: tuple[int, int],
    options: dict[str, int | str],
    **weights: tuple[int, int],
) -> tuple[torch.nn.Module, torch.nn.Module, LoadedWeights]:
    """Save a random ViT for one size of images, load it into one for another; both, and the report."""
    torch.manual_seed(0)
    source = build_trunk("vit", {**SMALL, **options, "image_size": saved_for})
    torch.save(source.state_dict(), tmp_path / "w.pth")
    trunk = build_trunk("vit", {**SMALL, **options, "image_size": image_size}, seed=1)
    taps = TappedTrunk(trunk, name="vit", layers=layers_of(["flatten"]))
    image = torch.rand(1, 3, *image_size)
    taps.probe(image)
    filled = load_weights(taps, image, WeightsConfig(file=tmp_path / "w.pth", **weights))
    return source, trunk, filled


@pytest.mark.parametrize("kind", KINDS)
def test_a_square_file_is_interpolated_to_a_grid_of_as_many_patches(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """12 x 12 and 9 x 16 are both 144; the right values are timm's."""
    with caplog.at_level(logging.WARNING):
        source, trunk, filled = loaded(tmp_path, (48, 48), (36, 64), KINDS[kind])
    prefix = source.pos_embed.shape[1] - 144
    expected = resample_abs_pos_embed(
        source.pos_embed, [9, 16], [12, 12], num_prefix_tokens=prefix, antialias=False
    )  # fmt: skip
    assert torch.allclose(trunk.pos_embed, expected, atol=1e-6)
    assert not torch.equal(trunk.pos_embed, source.pos_embed)
    assert filled.identity["positions"] == ["pos_embed 12 x 12 -> 9 x 16, bicubic"]
    assert "weights.position_grid=[9, 16]" in caplog.text


def test_a_file_of_the_trunks_grid_is_loaded_unchanged_if_the_user_says_so(tmp_path: Path) -> None:
    source, trunk, filled = loaded(tmp_path, (36, 64), (36, 64), {}, position_grid=(9, 16))
    assert torch.equal(trunk.pos_embed, source.pos_embed)
    assert filled.identity["positions"] == []


def test_a_file_with_a_grid_that_is_not_square_is_loaded_into_the_same_grid_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, trunk, _ = loaded(tmp_path, (20, 40), (20, 40), {})
    assert torch.equal(trunk.pos_embed, source.pos_embed)
    assert "position_grid" not in caplog.text


def test_dinos_formula_is_used_for_a_grid_that_is_not_square(tmp_path: Path) -> None:
    """`interpolate_pos_encoding` of facebookresearch/dino adds 0.1 to the sides before it divides."""
    source, trunk, _ = loaded(
        tmp_path, (36, 64), (48, 32), {"position_resize": "offset"}, position_grid=(9, 16)
    )  # fmt: skip
    patches = source.pos_embed[:, 1:].reshape(1, 9, 16, -1).permute(0, 3, 1, 2)
    expected = F.interpolate(patches, scale_factor=((12 + 0.1) / 9, (8 + 0.1) / 16), mode="bicubic")
    assert torch.allclose(trunk.pos_embed[:, 1:], expected.permute(0, 2, 3, 1).reshape(1, 96, -1), atol=1e-6)
    assert torch.equal(trunk.pos_embed[:, :1], source.pos_embed[:, :1])


def test_an_unknown_grid_is_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(WeightsError, match="does not fit"):
        loaded(tmp_path, (20, 40), (40, 40), {})
    assert "weights.position_grid=[HEIGHT, WIDTH]" in caplog.text
    _, _, filled = loaded(tmp_path, (20, 40), (40, 40), {}, position_grid=(5, 10))
    assert filled.identity["positions"] == ["pos_embed 5 x 10 -> 10 x 10, bicubic"]


def test_a_grid_that_does_not_agree_with_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"weights\.position_grid=\[5, 9\] .* 144"):
        loaded(tmp_path, (48, 48), (36, 64), {}, position_grid=(5, 9))


def test_timms_vit_is_interpolated_by_grid_too(tmp_path: Path) -> None:
    options = {"depth": 1, "embed_dim": 24, "num_heads": 2, "num_classes": 0}
    source = build_trunk("timm:vit_tiny_patch16_224", options, image_size=(192, 192))
    trunk = build_trunk("timm:vit_tiny_patch16_224", options, image_size=(144, 256))
    torch.save(source.state_dict(), tmp_path / "w.pth")
    taps = TappedTrunk(trunk, name="timm:vit_tiny_patch16_224", layers=layers_of(["flatten"]))
    image = torch.rand(1, 3, 144, 256)
    taps.probe(image)
    load_weights(taps, image, WeightsConfig(file=tmp_path / "w.pth"))
    expected = resample_abs_pos_embed(source.pos_embed, [9, 16], [12, 12], num_prefix_tokens=1, antialias=False)
    assert torch.allclose(trunk.pos_embed, expected, atol=1e-6)


def test_a_table_of_relative_positions_of_another_window_is_refused(tmp_path: Path) -> None:
    """Windows of 8 x 8 and of 5 x 13 both have 225 relative positions."""
    options = {"depth": 1, "embed_dim": 24, "num_heads": 2, "num_classes": 0}
    name = "timm:beit_base_patch16_224"
    source = build_trunk(name, options | {"img_size": (128, 128)})
    trunk = build_trunk(name, options | {"img_size": (80, 208)})
    torch.save(source.state_dict(), tmp_path / "w.pth")
    taps = TappedTrunk(trunk, name=name, layers=layers_of(["flatten"]))
    image = torch.rand(1, 3, 80, 208)
    taps.probe(image)
    with pytest.raises(WeightsError, match="relative positions can't be interpolated"):
        load_weights(taps, image, WeightsConfig(file=tmp_path / "w.pth"))
