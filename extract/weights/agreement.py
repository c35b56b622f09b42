"""Checks that a file and a trunk agree in what shapes do not show: heads, activations, epsilons, strides.

The file's configuration (`featbench.extract.weights.hub`), its names and its other contents say how it was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featbench.extract.errors import ModelError, WeightsError
from featbench.extract.model.options import TIMM
from featbench.extract.model.positions import grid_of
from featbench.extract.model.tap_names import body_of
from featbench.extract.model.trunks import build_without_memory
from featbench.extract.weights.hub import HubConfig

_ACTIVATIONS = {"gelu": "gelu", "gelutanh": "gelu_tanh", "quickgelu": "quick_gelu", "relu": "relu", "silu": "silu"}
_METADATA = ("num_heads", "num_attention_heads")
_OPENAI = {"input_resolution", "context_length", "vocab_size"}
_MOCO_V3_DIM, _MOCO_V3_HEADS = 384, 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """Settings of a trunk's modules that their parameters do not show."""

    num_heads: frozenset[int]
    activations: frozenset[str]
    layer_norm_eps: frozenset[float]
    batch_norm_eps: frozenset[float]
    convolutions: Mapping[str, tuple[Any, ...]]
    """Stride, padding, dilation and groups of each convolution, by its path."""


def traits_of(trunk: nn.Module) -> Traits:
    """Collect the settings of a trunk's modules, without its heads."""
    modules = dict(body_of(trunk)[0].named_modules())
    convolutions = {
        path: (module.stride, module.padding, module.dilation, module.groups)
        for path, module in modules.items()
        if isinstance(module, nn.Conv2d)
    }
    return Traits(
        num_heads=frozenset(m.num_heads for m in modules.values() if isinstance(getattr(m, "num_heads", None), int)),
        activations=frozenset(name for name in map(_activation, modules.values()) if name),
        layer_norm_eps=frozenset(module.eps for module in modules.values() if isinstance(module, nn.LayerNorm)),
        batch_norm_eps=frozenset(module.eps for module in modules.values() if isinstance(module, nn.BatchNorm2d)),
        convolutions=convolutions,
    )


def agree(trunk: nn.Module, config: HubConfig, options: Mapping[str, Any]) -> dict[str, float]:
    """Check a trunk against the file's configuration, and set the epsilons of its norms from it.

    Parameters
    ----------
    trunk : nn.Module
        The epsilons of its norms are set.
    config : HubConfig
        The file's configuration.
    options : mapping
        The user's options of the trunk: an epsilon given there is not overwritten.

    Returns
    -------
    dict of str to float
        The epsilons that were changed.

    Raises
    ------
    WeightsError
        The message has both values, and a trunk that agrees, if there is one.
    """
    ours = traits_of(trunk)
    theirs = _traits_of_timm(config) if config.kind == "timm" else _traits_of_transformers(config, ours)
    faults = []
    for what in ("num_heads", "activations"):
        said, have = getattr(theirs, what), getattr(ours, what)
        if said and have and said != have:
            faults.append(f"{what}: {_listed(said)} in {config.file.name}, {_listed(have)} in the trunk")
    for path, settings in theirs.convolutions.items():
        if path in ours.convolutions and ours.convolutions[path] != settings:
            pair = f"{settings} in {config.file.name}, {ours.convolutions[path]} in the trunk"
            faults.append(f"stride, padding, dilation, groups of {path}: {pair}")
    if config.patch_size and grid_of(trunk) and ours.convolutions:
        patch = next(iter(ours.convolutions.values()))[0][0]
        if patch != config.patch_size:
            faults.append(f"patch_size: {config.patch_size} in {config.file.name}, {patch} in the trunk")
    set_eps = {}
    for what, kind in (("layer_norm_eps", nn.LayerNorm), ("batch_norm_eps", nn.BatchNorm2d)):
        said, have = getattr(theirs, what), getattr(ours, what)
        if len(said) != 1 or not have or said == have:
            continue
        if "eps" in options:
            faults.append(f"{what}: {_listed(said)} in {config.file.name}, model.options.eps={options['eps']}")
            continue
        set_eps[what] = next(iter(said))
        for module in body_of(trunk)[0].modules():
            if isinstance(module, kind):
                module.eps = set_eps[what]
    if faults:
        raise WeightsError(
            f"{config.file}: these weights belong to another network, though the shapes may agree: "
            f"{'; '.join(faults[:4])}. {_way_on(config)}"
        )
    return set_eps


def check_heads_of_attention(
    trunk: nn.Module,
    content: Any,
    tensors: Mapping[str, Tensor],
    names: Mapping[str, Tensor],
    options: Mapping[str, Any],
) -> None:
    """Refuse a number of attention heads other than the file's, if the file shows it.

    MoCo v3's ViT-S has twelve, others have six. It is recognized by its names, by what `main_lincls.py` saves
    with them, or by its position embeddings, which are computed. Settings that the file contains count too.

    Parameters
    ----------
    trunk : nn.Module
        A vision transformer with `blocks`, or another trunk, which passes.
    content
        The whole file.
    tensors : mapping of str to Tensor
        Of the whole file, flat.
    names : mapping of str to Tensor
        Those for the trunk, by its names.
    options : mapping
        A number of heads given by the user counts, except for MoCo v3's own names.

    Raises
    ------
    WeightsError
        The message has both numbers.
    """
    blocks = getattr(body_of(trunk)[0], "blocks", None)
    ours = traits_of(trunk).num_heads
    if not isinstance(blocks, nn.Module) or len(ours) != 1:
        return
    have = next(iter(ours))
    token = names.get("cls_token")
    small = token is not None and tuple(token.shape[-1:]) == (_MOCO_V3_DIM,) and have != _MOCO_V3_HEADS
    named = any("base_encoder." in name or "momentum_encoder." in name for name in tensors)
    said = "num_heads" in options
    if small and (named or (not said and (_is_moco_v3_by_arch(content) or _is_moco_v3_by_positions(names)))):
        raise WeightsError(
            f"MoCo v3's ViT-S has 12 attention heads, the trunk {have}; the shapes are the same, the features are "
            f"not. Use model.trunk=mocov3_vit_small_16 (or num_heads: 12)"
            + ("" if named else f"; if it does have {have}, add 'model.options={{num_heads: {have}}}'")
        )
    found = set() if said else _saved_heads(content)
    if len(found) == 1 and found != {have}:
        saved = next(iter(found))
        raise WeightsError(
            f"the file's settings say {saved} attention heads, the trunk has {have}; "
            f"the shapes are the same, the features are not. Add 'model.options={{num_heads: {saved}}}', or "
            f"'model.options={{num_heads: {have}}}' if that is not meant"
        )


def check_activation(trunk: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Refuse another activation than OpenAI's for CLIP, whose files contain the image size as well.

    Raises
    ------
    WeightsError
    """
    ours = traits_of(trunk).activations
    if tensors.keys() >= _OPENAI and ours and "relu" not in ours and ours != {"quick_gelu"}:
        raise WeightsError(
            f"OpenAI's CLIP uses quick_gelu, the trunk {_listed(ours)}; the shapes are the same, the features "
            f"are not. Add 'model.options={{act_layer: quick_gelu}}', or use one of timm's models named clip_quickgelu"
        )


def moco_v3_positions(height: int, width: int, dim: int) -> Tensor:
    """Compute MoCo v3's position embeddings: sines and cosines of the row, then of the column.

    References
    ----------
    facebookresearch/moco-v3, vits.py, `build_2d_sincos_position_embedding`.

    Returns
    -------
    Tensor of shape (height * width, dim)
    """
    frequencies = 1 / 10_000 ** (torch.arange(dim // 4, dtype=torch.float32) / (dim // 4))
    rows = torch.arange(height, dtype=torch.float32).repeat_interleave(width)[:, None] * frequencies
    columns = torch.arange(width, dtype=torch.float32).repeat(height)[:, None] * frequencies
    return torch.cat((rows.sin(), rows.cos(), columns.sin(), columns.cos()), dim=1)


def _is_moco_v3_by_arch(content: Any) -> bool:
    return isinstance(content, Mapping) and content.get("arch") == "vit_small" and "state_dict" in content


def _is_moco_v3_by_positions(names: Mapping[str, Tensor]) -> bool:
    positions = names.get("pos_embed")
    if positions is None or positions.ndim != 3 or positions.shape[2] % 4:
        return False
    side = int((positions.shape[1] - 1) ** 0.5)
    if side**2 + 1 != positions.shape[1] or side < 2:
        return False
    expected = moco_v3_positions(side, side, positions.shape[2])
    return torch.allclose(positions[0, 1:].float(), expected, atol=1e-2)


def _saved_heads(content: Any, depth: int = 0) -> set[int]:
    """Every number of heads among the settings that a file contains."""
    if not isinstance(content, Mapping) or depth > 4:
        return set()
    found = {content[key] for key in _METADATA if type(content.get(key)) is int}
    for key, value in content.items():
        if isinstance(value, Mapping) and "decoder" not in str(key) and "predictor" not in str(key):
            found |= _saved_heads(value, depth + 1)
    return found


def _traits_of_transformers(config: HubConfig, ours: Traits) -> Traits:
    convolutions = {}
    if config.stride_in_first is not None:
        for path in (f"layer{stage}.0.conv{number}" for stage in (2, 3, 4) for number in (1, 2)):
            if (
                path in ours.convolutions
                and path.replace("conv1", "conv3").replace("conv2", "conv3") in ours.convolutions
            ):
                first = path.endswith("conv1")
                stride = (2, 2) if first == config.stride_in_first else (1, 1)
                convolutions[path] = (stride, *ours.convolutions[path][1:])
    return Traits(
        num_heads=frozenset([config.num_heads] if config.num_heads else []),
        activations=frozenset([config.activation] if config.activation else []),
        layer_norm_eps=frozenset([config.layer_norm_eps] if config.layer_norm_eps else []),
        batch_norm_eps=frozenset(),
        convolutions=convolutions,
    )


def _traits_of_timm(config: HubConfig) -> Traits:
    architecture, arguments = config.content["architecture"], config.content.get("model_args") or {}
    try:
        reference = build_without_memory(f"{TIMM}{architecture}", arguments)
    except (ModelError, AttributeError) as error:
        raise WeightsError(f"{config.file}: its architecture {architecture!r} can't be compared: {error}") from error
    return traits_of(reference)


def _activation(module: nn.Module) -> str:
    name = _ACTIVATIONS.get(type(module).__name__.lower(), "")
    return "gelu_tanh" if name == "gelu" and getattr(module, "approximate", "none") == "tanh" else name


def _way_on(config: HubConfig) -> str:
    if config.kind == "timm":
        arguments = config.content.get("model_args") or {}
        options = ", ".join(f"{key}: {value}" for key, value in arguments.items())
        return f"Use model.trunk={TIMM}{config.content['architecture']}" + (
            f" 'model.options={{{options}}}'" if options else ""
        )
    settings = config.as_vit()
    return f"Use {settings}" if settings else "No built-in trunk matches; give a function that builds it as model.trunk"


def _listed(values: frozenset[Any]) -> str:
    return ", ".join(str(value) for value in sorted(values))
