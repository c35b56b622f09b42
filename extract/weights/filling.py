"""Giving a model its weights, and saying what they are: identity for the fingerprint, notes for the record."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from extract.config import WeightsConfig
from extract.model.positions import Grid
from extract.model.taps import TappedTrunk
from extract.model.trunks import code_of
from extract.weights.checkpoints import WeightsError, read_checkpoint, sha256_of_files, sha256_of_tensors
from extract.weights.families import find_weights
from extract.weights.layouts import laid_out
from extract.weights.strict import (
    LoadReport,
    check_heads_of_attention,
    download,
    load_strictly,
    names_of,
    poison,
    torchvision_weights,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """What a model was filled with."""

    identity: dict[str, Any]
    """What could change a feature."""

    text: str
    """For people: the file's name, or that they are random."""

    load: dict[str, Any]
    """How the names matched; empty where nothing was loaded."""


def fill(taps: TappedTrunk, image: Tensor, config: WeightsConfig) -> Filled:
    """Give a model its weights; every one that its layers use must come from where the configuration says.

    Parameters
    ----------
    taps : TappedTrunk
        Probed; its trunk is filled.
    image : Tensor of shape (1, 3, H, W)
        One that the trunk can run on.
    config : WeightsConfig
        Which weights.

    Raises
    ------
    WeightsError
        If none are named, they can't be read, or they don't fit.
    """
    trunk, name = taps.trunk, taps.name
    if config.random_seed is not None:
        identity = {"source": "random", "seed": config.random_seed, "sha256": sha256_of_tensors(trunk.state_dict())}
        return Filled(identity=identity, text=f"random (seed {config.random_seed})", load={})
    if config.as_built:
        if code_of(name) is None:
            raise WeightsError(f"weights.as_built is for a function of one's own that loads them; {name} has none")
        digest = sha256_of_tensors(trunk.state_dict())
        return Filled(identity={"source": "function", "sha256": digest}, text=f"as {name} gives them", load={})
    if config.file is not None:
        return _from_file(taps, image, config)
    if config.torchvision is not None:
        named = torchvision_weights(name, config.torchvision)
        state = download(named)
        identity = {"source": "torchvision", "name": str(named), "sha256": sha256_of_tensors(state)}
        report = _load(trunk, laid_out(state)[1], taps.modules_used(image), str(named))
        return Filled(identity=identity, text=str(named), load=_record(report))
    raise WeightsError(
        "no weights: give --weights FILE (a .pth, .pt or .safetensors checkpoint), the name of torchvision's own "
        "(--weights DEFAULT), or ask for untrained ones with --random-weights SEED"
    )


def _from_file(taps: TappedTrunk, image: Tensor, config: WeightsConfig) -> Filled:
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
    where = f"{path} (read as: {found.read_as})"
    check_heads_of_attention(taps.trunk, found.read_as)
    report = _load(
        taps.trunk, dict(found.tensors), taps.modules_used(image), where, config.ignore, config.position_grid
    )
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
    }
    text = f"{path.name} ({found.read_as}; sha256 {digest[:12]})"
    return Filled(identity=identity, text=text, load=_record(report) | {"left_out": found.left_out})


def _load(
    trunk: nn.Module,
    state: dict[str, Tensor],
    used: set[str],
    where: str,
    ignore: tuple[str, ...] = (),
    grid: Grid | None = None,
) -> LoadReport:
    poison(trunk)
    report = load_strictly(trunk, state, used=used, where=where, ignore=ignore, grid=grid)
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
