"""The transform that belongs to the weights is taken, and said, unless the pipeline says another."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import timm
from timm.data import create_transform, resolve_data_config  # type: ignore[attr-defined]
from torchvision.transforms import CenterCrop, Normalize, Resize

from featbench.extract.errors import WeightsError
from featbench.extract.transform import Transform
from featbench.extract.weights.preprocessing import of_timm
from featbench.pipelines.config.pipeline import Pipeline
from featbench.pipelines.extraction.transforming import choose_transform

VIT = {  # as transformers' ViTImageProcessor writes it
    "do_resize": True, "do_rescale": True, "do_normalize": True, "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5], "image_processor_type": "ViTImageProcessor", "resample": 2,
    "rescale_factor": 1 / 255, "size": {"height": 224, "width": 224},
}  # fmt: skip
BIT = VIT | {  # BitImageProcessor, as DINOv2 has it
    "image_processor_type": "BitImageProcessor", "do_center_crop": True, "crop_size": {"height": 224, "width": 224},
    "size": {"shortest_edge": 256}, "resample": 3, "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}  # fmt: skip
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def chosen(
    file: Path | str | None, *, trunk: str = "vit_small_16", transform: dict[str, Any] | None = None
) -> tuple[Transform, str]:
    weights = {"random_seed": 0} if file is None else {"file": str(file)}
    return choose_transform(
        Pipeline.model_validate(
            {"name": "x", "data": {"root": "."}, "layers": ["lastCLS"], "model": {"trunk": trunk}, "weights": weights}
            | ({"transform": transform} if transform else {})
        )
    )


def hub(folder: Path, **content: Any) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (VIT, ((224, 224), None, "bilinear", (0.5,) * 3, (0.5,) * 3)),
        (BIT, (256, 224, "bicubic", *IMAGENET)),
        (BIT | {"image_processor_type": "ConvNextFeatureExtractor", "size": {"shortest_edge": 224}, "crop_pct": 0.875},
         (256, 224, "bicubic", *IMAGENET)),
        (BIT | {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
         ((384, 384), None, "bicubic", *IMAGENET)),
        # As transformers' own processors resize: 256 / 224 of the crop, and the crop / 0.9.
        (BIT | {"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 224}},
         (256, 224, "bicubic", *IMAGENET)),
        (BIT | {"image_processor_type": "PoolFormerImageProcessor", "size": {"shortest_edge": 224}, "crop_pct": 0.9},
         (248, 224, "bicubic", *IMAGENET)),
        (VIT | {"do_normalize": False}, ((224, 224), None, "bilinear", (0.0,) * 3, (1.0,) * 3)),
        (VIT | {"size": 224}, ((224, 224), None, "bilinear", (0.5,) * 3, (0.5,) * 3)),
        # (bytes / 127.5 - 1) / 1 is (bytes / 255 - 0.5) / 0.5
        (VIT | {"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]},
         ((224, 224), None, "bilinear", (0.5,) * 3, (0.5,) * 3)),
    ],
)  # fmt: skip
def test_the_preprocessor_of_a_hub_folder_is_followed_and_said(
    tmp_path: Path, config: dict[str, Any], expected: tuple[Any, ...], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        transform, text = chosen(hub(tmp_path, **config))
    assert (transform.resize, transform.crop, transform.interpolation) == expected[:3]
    assert transform.mean == pytest.approx(expected[3])
    assert transform.std == pytest.approx(expected[4])
    assert "preprocessor_config.json" in text
    assert "preprocessor_config.json" in caplog.text


def test_what_the_pipeline_says_counts_and_the_difference_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    transform, text = chosen(hub(tmp_path, **BIT), transform={"mean": [0.5, 0.5, 0.5], "crop": 96})
    assert transform.mean == (0.5, 0.5, 0.5)
    assert (transform.resize, transform.crop) == (256, 96)
    assert transform.interpolation == "bicubic"
    assert "mean=[0.485, 0.456, 0.406]" in text
    assert "mean=[0.5, 0.5, 0.5]" in caplog.text


@pytest.mark.parametrize(
    "config",
    [VIT | {"resample": 1}, VIT | {"size": {"longest_edge": 9}}, VIT | {"image_mean": 3}, VIT | {"size": None},
     VIT | {"image_processor_type": "EfficientNetImageProcessor"}],
)  # fmt: skip
def test_a_preprocessor_that_cannot_be_followed_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match=r"preprocessor_config\.json: cannot be used.*set transform"):
        chosen(hub(tmp_path, **config))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet50", "mixer_b16_224", "convnext_tiny.fb_in1k"])
def test_timms_settings_are_those_of_timms_own_transform(name: str) -> None:
    """The right values are what `timm.data.create_transform` makes of the same configuration."""
    config = timm.models.get_pretrained_cfg(name).to_dict()
    steps = create_transform(**resolve_data_config({}, pretrained_cfg=config)).transforms
    resize, crop, normalize = (
        next(s for s in steps if isinstance(s, kind)) for kind in (Resize, CenterCrop, Normalize)
    )
    ours = of_timm(config)
    assert ours["resize"] == resize.size
    assert (ours["crop"], ours["crop"]) == tuple(crop.size)
    assert ours["interpolation"] == resize.interpolation.value
    assert ours["mean"] == pytest.approx(normalize.mean.tolist())
    assert ours["std"] == pytest.approx(normalize.std.tolist())


def test_timms_preprocessing_is_taken_for_weights_of_its_own_by_tag(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        transform, text = chosen("w.pth", trunk="timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    assert (transform.mean, transform.resize, transform.interpolation) == ((0.5, 0.5, 0.5), 248, "bicubic")
    assert "timm, for vit_tiny_patch16_224.augreg_in21k_ft_in1k" in text


def test_another_file_in_a_model_of_timms_is_warned_of_with_both_values_until_the_transform_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    transform, text = chosen("w.pth", trunk="timm:vit_tiny_patch16_224")
    assert transform.mean == IMAGENET[0]
    assert "mean=[0.5, 0.5, 0.5]" in caplog.text
    assert "mean=[0.485, 0.456, 0.406]" in caplog.text
    assert "model.trunk=timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k" in text
    caplog.clear()
    said = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize": 248, "crop": 224, "interpolation": "bicubic"}
    assert chosen("w.pth", trunk="timm:vit_tiny_patch16_224", transform=said)[1] == ""
    assert not caplog.text


def test_random_weights_keep_imagenets_usual_transform(caplog: pytest.LogCaptureFixture) -> None:
    transform, text = chosen(None, trunk="timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    assert (transform.mean, transform.resize, text) == (IMAGENET[0], 256, "")


def test_a_timm_folder_brings_its_transform_along(tmp_path: Path) -> None:
    own = {"input_size": [3, 96, 96], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.5}
    config = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": own | {"interpolation": "bilinear"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    transform, text = chosen(tmp_path, trunk="timm:vit_tiny_patch16_224")
    assert (transform.resize, transform.crop, transform.mean) == (192, 96, (0.1, 0.2, 0.3))
    assert "config.json" in text
