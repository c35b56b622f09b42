"""Interpolates position embeddings of a file to the grid of patches of the trunk."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from featbench.extract.errors import WeightsError
from featbench.extract.model.positions import Grid, grid_of, interpolated, is_position, of_another_window

logger = logging.getLogger(__name__)


def positioned(
    trunk: nn.Module, wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], *, where: str, grid: Grid | None
) -> tuple[dict[str, Tensor], list[str]]:
    """Interpolate the position embeddings of a state dict whose grid of patches is not the trunk's.

    Returns
    -------
    dict of str to Tensor
        The state dict, with interpolated position embeddings.
    list of str
        Which were interpolated, with both grids.

    Raises
    ------
    WeightsError
        If the grid that the user gave does not fit the file, or relative positions have another window.
    """
    fitted, notes = dict(state), []
    for name, tensor in wanted.items():
        if name not in state:
            continue
        if is_position(name):
            _check_grid(trunk, name, state[name], tensor.shape, where, grid)
            made = interpolated(trunk, state[name], tensor.shape, grid=grid)
            if made is not None:
                fitted[name] = made.positions_1TD
                notes.append(f"{name} {made.text}")
                if made.assumed:
                    ours = "{}, {}".format(*(grid_of(trunk) or ()))
                    logger.warning(
                        "%s: %s %s: the file is assumed to have a square grid. If it was trained on the trunk's "
                        "grid, set weights.position_grid=[%s]", where, name, made.text, ours,
                    )  # fmt: skip
            elif grid is None and state[name].shape != tensor.shape and grid_of(trunk) is not None:
                logger.warning(
                    "%s: %s of shape %s: its patches are not a square. Set weights.position_grid=[HEIGHT, WIDTH], in "
                    "patches", where, name, tuple(state[name].shape),
                )  # fmt: skip
        elif of_another_window(trunk, name, state[name], grid=grid):
            raise WeightsError(
                f"{where}: {name} may have a square window, the trunk's is not square, and relative positions can't "
                f"be interpolated. Use a square transform.crop, or set weights.position_grid if they agree"
            )
    return fitted, notes


def _check_grid(
    trunk: nn.Module, name: str, positions: Tensor, shape: torch.Size, where: str, grid: Grid | None
) -> None:
    """Refuse a grid given by the user that does not fit the file."""
    ours = grid_of(trunk)
    if grid is None or ours is None or positions.ndim != 3 or len(shape) != 3:
        return
    count = positions.shape[1] - (shape[1] - ours[0] * ours[1])
    if count != grid[0] * grid[1]:
        raise WeightsError(
            f"{where}: weights.position_grid=[{grid[0]}, {grid[1]}] does not agree with {name}, "
            f"which has {count} patches"
        )
