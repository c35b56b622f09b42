"""Loading a model's weights; returns their identity for the fingerprint, and notes for the record."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from featbench.extract.config import WeightsConfig
from featbench.extract.errors import WeightsError
from featbench.extract.model.positions import Grid, is_position
from featbench.extract.model.taps import TappedTrunk
from featbench.extract.model.trunks import code_of
from featbench.extract.weights.agreement import agree, check_activation, check_heads_of_attention
from featbench.extract.weights.checkpoints import read_checkpoint, sha256_of_files, sha256_of_tensors
from featbench.extract.weights.hub import HubConfig, read_config
from featbench.extract.weights.key_mappings import laid_out
from featbench.extract.weights.state_dicts import advice, find_weights, flattened
from featbench.extract.weights.strict import LoadReport, load_strictly, names_of, poison
from featbench.extract.weights.torchvision import download, torchvision_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedWeights:
    """Weights that have been loaded into a model."""

    identity: dict[str, Any]
    """What identifies them in the fingerprint."""

    text: str
    """For messages: the file's name, or that they are random."""

    load: dict[str, Any]
    """How the names matched; empty if no file was loaded."""


def load_weights(
    taps: TappedTrunk, image: Tensor, config: WeightsConfig, *, options: Mapping[str, Any] | None = None
) -> LoadedWeights:
    """Load a model's weights; all that its layers use must come from the configured source.

    Parameters
    ----------
    taps : TappedTrunk
        Probed; the weights are loaded into its trunk.
    image : Tensor of shape (1, 3, H, W)
        An image that the trunk can run on.
    config : WeightsConfig
        Which weights.
    options : mapping, optional
        The user's options of the trunk's constructor; they decide what a file leaves open.

    Raises
    ------
    WeightsError
        If none are given, they can't be read, or they do not fit.
    """
    trunk, name = taps.trunk, taps.name
    if config.random_seed is not None:
        identity = {"source": "random", "seed": config.random_seed, "sha256": sha256_of_tensors(trunk.state_dict())}
        return LoadedWeights(identity=identity, text=f"random (seed {config.random_seed})", load={})
    if config.as_built:
        if code_of(name) is None:
            raise WeightsError(f"weights.as_built is for your own function that loads the weights; {name} is none")
        digest = sha256_of_tensors(trunk.state_dict())
        return LoadedWeights(identity={"source": "function", "sha256": digest}, text=f"as {name} returns them", load={})
    if config.file is not None:
        return _from_file(taps, image, config, options or {})
    if config.torchvision is not None:
        named = torchvision_weights(name, config.torchvision)
        state = download(named)
        identity = {"source": "torchvision", "name": str(named), "sha256": sha256_of_tensors(state)}
        report = _load(trunk, laid_out(state)[1], taps.modules_used(image), str(named))
        return LoadedWeights(identity=identity, text=str(named), load=_record(report))
    raise WeightsError(
        "no weights: give --weights FILE (a .pth, .pt or .safetensors checkpoint), the name of torchvision's weights "
        "(--weights DEFAULT), or --random-weights SEED for untrained ones"
    )


def _from_file(taps: TappedTrunk, image: Tensor, config: WeightsConfig, options: Mapping[str, Any]) -> LoadedWeights:
    assert config.file is not None
    path = config.file
    content = read_checkpoint(path, trust=config.trust)
    found = find_weights(
        content,
        wanted=names_of(taps.trunk),
        where=str(path),
        branch=config.branch,
        key=config.key,
        remove_prefix=config.remove_prefix,
        add_prefix=config.add_prefix,
    )
    where = f"{path} (read as: {found.description})"
    flat = flattened(content) if isinstance(content, Mapping) else {}
    check_heads_of_attention(taps.trunk, content, flat, found.tensors, options)
    check_activation(taps.trunk, flat)
    hub = read_config(path)
    grid = config.position_grid or _grid(hub, found.tensors)
    cure = partial(_cure, content, names_of(taps.trunk))
    report = _load(taps.trunk, dict(found.tensors), taps.modules_used(image), where, config.ignore, grid, cure)
    eps = agree(taps.trunk, hub, options) if hub is not None else {}
    digest = sha256_of_files(path)
    identity = {
        "source": "file",
        "sha256": digest,
        "read_as": found.read_as,
        "key": config.key,
        "remove_prefix": config.remove_prefix,
        "add_prefix": config.add_prefix,
        "positions": list(report.interpolated),
        **({"position_grid": list(config.position_grid)} if config.position_grid else {}),
        **({"config": eps} if eps else {}),
    }
    if eps:
        said = ", ".join(f"{name} {value:g}" for name, value in eps.items())
        logger.info("%s: taken from its configuration: %s", path, said)
    text = f"{path.name} ({found.description}; sha256 {digest[:12]})"
    return LoadedWeights(identity=identity, text=text, load=_record(report) | {"left_out": found.left_out})


def _grid(hub: HubConfig | None, tensors: Mapping[str, Tensor]) -> Grid | None:
    """The configuration's grid of patches, if the file has about as many position embeddings."""
    grid = hub.grid if hub is not None else None
    counts = [tensor.shape[1] for name, tensor in tensors.items() if is_position(name) and tensor.ndim == 3]
    return grid if grid and any(0 <= count - grid[0] * grid[1] <= 16 for count in counts) else None


def _cure(content: Any, wanted: set[str], matched: int) -> str:
    return advice(content, wanted, matched=matched)


def _load(
    trunk: nn.Module,
    state: dict[str, Tensor],
    used: set[str],
    where: str,
    ignore: tuple[str, ...] = (),
    grid: Grid | None = None,
    cure: Callable[[int], str] | None = None,
) -> LoadReport:
    poison(trunk)
    report = load_strictly(trunk, state, used=used, where=where, ignore=ignore, grid=grid, cure=cure)
    logger.info("%s: %s", where, report)
    return report


def _record(report: LoadReport) -> dict[str, Any]:
    return {
        "loaded": report.loaded,
        "missing": list(report.missing),
        "reshaped": list(report.reshaped),
        "unexpected": list(report.unexpected),
        "interpolated": list(report.interpolated),
    }
