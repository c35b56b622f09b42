"""The form in which a trunk is run: as it was built, with folded batch norms, or with weights in low precision."""

from __future__ import annotations

import torch
from torch import Tensor

from featbench.extract.model.compiling import disagreement
from featbench.extract.model.rewriting import CannotRewriteError, LowPrecision, folded
from featbench.extract.model.taps import TappedTrunk
from featbench.extract.passes import DTYPES

PLAIN = "plain"
"""As it was built; below float32 in autocast."""

FOLDED = "folded"
"""With batch norms folded into convolutions; below float32 in autocast."""

WEIGHTS = "weights"
"""With batch norms folded, and then weights in low precision, without autocast."""

LOW = tuple(DTYPES)
"""Precisions of weights."""

Tapped = TappedTrunk | LowPrecision


def in_form(taps: TappedTrunk, form: str, images: Tensor, precision: str) -> Tapped:
    """Return a trunk in a form, whose features agree with the trunk's in float32.

    Parameters
    ----------
    taps : TappedTrunk
        As it was built, probed, on its device.
    form : {"plain", "folded", "weights"}
        "folded" is the trunk itself if it has no batch norm to be folded.
    images : Tensor of shape (B, 3, H, W)
        Images to compare, scaled.
    precision : str
        Whose tolerance counts, and the one of the weights.

    Raises
    ------
    CannotRewriteError
        If it can't have that form, or gives other features then.
    """
    if form == PLAIN:
        return taps
    without_norms = folded(taps, images[:1]) or taps
    made = without_norms if form == FOLDED else LowPrecision(without_norms, DTYPES[precision], images[:1])
    if made is not taps:
        with torch.autocast(images.device.type, enabled=False):
            said = disagreement(taps(images), made(images), precision)
        if said:
            what = "with folded batch norms" if form == FOLDED else f"with {precision} weights"
            raise CannotRewriteError(f"{what} it gives other features: {said}")
    return made
