"""Where in a training run a checkpoint is: epoch and step, from its name or what is saved in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_EPOCH = re.compile(r"(?<![a-z])(?:epochs?|ep|phase)[=_\-.]?(\d+)", re.IGNORECASE)
_STEP = re.compile(
    r"(?<![a-z])(?:global[_-]?steps?|steps?|iterations?|iters?|it|training|batch(?:es)?)[=_\-.]?(\d+)", re.IGNORECASE
)
_BARE = re.compile(r"(?<![a-z])(?:checkpoint|ckpt|chkpt|model|weights|e)[=_\-.]?(\d+)(?![\w.]*\d)", re.IGNORECASE)

EPOCH_KEYS = ("epoch", "epochs", "current_epoch", "phase_idx")
STEP_KEYS = ("global_step", "step", "iteration", "iter", "current_iter", "it")
"""Keys of a checkpoint, the first that there is."""

MOST = 10**12
"""Larger numbers are no epochs or steps."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far training was."""

    epoch: int | None = None
    step: int | None = None

    @property
    def value(self) -> int | None:
        """Where the point is on the axis of a curve: the step, or else the epoch."""
        return self.epoch if self.step is None else self.step

    def __str__(self) -> str:
        parts = [("epoch", self.epoch), ("step", self.step)]
        return "-".join(f"{name}{number}" for name, number in parts if number is not None)


def position_of(path: Path, content: Any = None) -> Position:
    """Find epoch and step of a checkpoint.

    Its name says them first, as in `epoch=3-step=1200.ckpt`, `ckpt_ep12.pth` or `training_12499/teacher.pth`; then the
    keys in it; then a bare number, as in `checkpoint0080.pth`, which is an epoch, or, of a folder, a step.

    Parameters
    ----------
    path : Path
        Its name, and that of its folder, are looked at.
    content : optional
        What was saved in it.

    Examples
    --------
    >>> position_of(Path("runs/epoch=3-step=1200.ckpt")), position_of(Path("checkpoint-0080.pth.tar"))
    (Position(epoch=3, step=1200), Position(epoch=80, step=None))
    >>> position_of(Path("checkpoint_0199.pth.tar"), {"epoch": 200, "state_dict": {}})
    Position(epoch=200, step=None)
    """
    saved = content if isinstance(content, Mapping) else {}
    epoch = _first(_EPOCH, path)
    step = _first(_STEP, path)
    if epoch is None and step is None and "phase_idx" in saved and "epoch" not in saved:
        step = _saved(saved, ("iteration",))  # VISSL's
    epoch = _saved(saved, EPOCH_KEYS) if epoch is None else epoch
    step = _saved(saved, STEP_KEYS) if step is None else step
    if epoch is None and step is None and (bare := _first(_BARE, path)) is not None:
        return Position(step=bare) if path.is_dir() else Position(epoch=bare)
    return Position(epoch, step)


def _first(pattern: re.Pattern[str], path: Path) -> int | None:
    for name in (path.name, path.parent.name):
        if found := pattern.search(name):
            number = int(found[1])
            return number if number < MOST else None
    return None


def _saved(saved: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    for key in keys:
        value: Any = saved.get(key)
        value = value.item() if getattr(value, "numel", lambda: 0)() == 1 else value  # a tensor
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST:
            return value
    return None
