"""Strict loading: a wrong or partial load can't produce a number.

Before loading, every parameter and buffer is set to NaN. A file must then contain each one that the
requested layers use, and nothing else for the modules that they use: a ResNet-101 fits a ResNet-50
name by name, except for the blocks that are left over. What does not fit is refused by name, and
what was not loaded would show as NaN in any case.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featbench.extract.errors import WeightsError
from featbench.extract.model.heads import TrunkWithHeads
from featbench.extract.model.positions import Grid
from featbench.extract.model.tap_names import body_of, classifier_of
from featbench.extract.weights.key_mappings import HEADS
from featbench.extract.weights.positioning import positioned
from featbench.store import abbreviate

PREFIXES = (
    "module.", "backbone.", "encoder.", "model.", "base_encoder.", "encoder_q.", "teacher.", "student.", "trunk.",
)  # fmt: skip
"""Prefixes that training wrappers add; tried if a file does not fit, to suggest one."""

COUNTERS = ("num_batches_tracked", "relative_position_index", "attn_mask", "relative_coords_table")
"""Suffixes of buffers that no feature depends on, or that the model computes itself."""

BESIDE = (
    r"(fc|head|heads|classifier|projector|projection|projection_head|prototypes|predictor|head_dist|aux|AuxLogits)\d*\."
    r"|(queue|queue_ptr|mask_token|masked_embed|center|n_averaged|initted|step)$|decoder|momentum_"
)
"""Modules that may be left over in a file: they come after the trunk, or are only used in training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """How the names of a file and of a model matched."""

    loaded: int
    missing: tuple[str, ...]
    """Parameters of the model that the file lacks; none that the layers use."""

    unexpected: tuple[str, ...]
    """Names of the file that the model lacks; none within what the layers use."""

    reshaped: tuple[str, ...] = ()
    """Names of both with different shapes; none that the layers use."""

    interpolated: tuple[str, ...] = ()
    """Position embeddings that were interpolated, each with its old and its new grid."""

    def __str__(self) -> str:
        parts = [f"{self.loaded} tensors loaded"]
        for what, names in (
            ("missing (behind the last tap)", self.missing),
            ("of another shape (behind the last tap)", self.reshaped),
            ("not in the model", self.unexpected),
            ("interpolated", self.interpolated),
        ):
            if names:
                parts.append(f"{len(names)} {what}: {abbreviate(names)}")
        return "; ".join(parts)


def names_of(trunk: nn.Module) -> set[str]:
    """Names of the parameters and buffers of a trunk, without those of its heads."""
    return set(body_of(trunk)[0].state_dict())


def poison(trunk: nn.Module) -> None:
    """Set every floating-point parameter and buffer of the state to NaN, so that none is used unless it is loaded."""
    with torch.no_grad():
        for tensor in trunk.state_dict().values():
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))


def load_strictly(
    trunk: nn.Module,
    state: Mapping[str, Tensor],
    *,
    used: set[str],
    where: str,
    ignore: Sequence[str] = (),
    grid: Grid | None = None,
    cure: Callable[[int], str] | None = None,
) -> LoadReport:
    """Load a state dict into a poisoned trunk and its heads.

    Parameters
    ----------
    trunk : nn.Module
        Its tensors are replaced by the file's.
    state : mapping of str to Tensor
        As `state_dicts.find_weights` returns it.
    used : set of str
        Names of the modules that matter (`TappedTrunk.modules_used`); all of their tensors must be loaded.
    where : str
        What to call the file in messages.
    ignore : sequence of str
        Prefixes of names that may be left over in the file.
    grid : (int, int), optional
        Grid of patches of the file's position embeddings, if it is known.
    cure : callable, optional
        Given the number of names that match, returns advice for more to match; by default the likeliest prefix.

    Raises
    ------
    WeightsError
        The message has a table of what is missing, has another shape or is left over, and the likeliest prefix.
    """
    state = _addressed(trunk, state)
    wanted = {name: tensor for name, tensor in trunk.state_dict().items() if not name.endswith(COUNTERS)}
    state, notes = positioned(trunk, wanted, state, where=where, grid=grid)
    fitting = {name: state[name] for name in wanted if name in state and _alike(state[name], wanted[name])}
    filled_in = {_memory(wanted[name]) for name in fitting}
    missing = [name for name in wanted if name not in state and _memory(wanted[name]) not in filled_in]
    reshaped = [name for name in wanted if name in state and name not in fitting]
    unexpected = [name for name in state if name not in wanted and not name.endswith(COUNTERS)]
    faults = [name for name in missing + reshaped if name.rpartition(".")[0] in used]
    strange = [name for name in unexpected if not name.startswith(tuple(ignore)) and _matters(trunk, name, used)]
    if faults or strange or not fitting:
        raise WeightsError(_does_not_fit(wanted, state, missing, reshaped, unexpected, strange, where, cure))
    _check_finite(trunk, fitting, used, where)
    filled = trunk.state_dict()  # with its metadata, which some models need
    filled.update(fitting)
    trunk.load_state_dict(filled)
    return LoadReport(
        loaded=len(fitting),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        reshaped=tuple(reshaped),
        interpolated=tuple(notes),
    )


def _addressed(trunk: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors to the model's names; heads are left out if the model has none."""
    prefix = body_of(trunk)[1]
    has_heads = isinstance(trunk, TrunkWithHeads)
    named = {}
    for name, tensor in state.items():
        if not name.startswith(HEADS):
            named[prefix + name] = tensor
        elif has_heads:
            named["heads." + name.removeprefix(HEADS)] = tensor
    return named


def _matters(trunk: nn.Module, name: str, used: set[str]) -> bool:
    """Whether a name that the model lacks is within the modules that the layers use, so the file is another model's."""
    body, prefix = body_of(trunk)
    if name.startswith("heads.") and isinstance(trunk, TrunkWithHeads):
        number, _, rest = name.removeprefix("heads.").partition(".")
        return hasattr(trunk.heads, number) and not rest.startswith("prototypes")
    name = name.removeprefix(prefix)
    classifier = classifier_of(body)
    if classifier and name.startswith(classifier.partition(".")[0] + "."):
        return prefix + classifier in used and not isinstance(body.get_submodule(classifier), nn.Identity)
    modules = {path for path, _ in body.named_modules()}
    parent = name.rpartition(".")[0]
    while parent not in modules:
        parent = parent.rpartition(".")[0]
    if parent:
        return prefix + parent in used
    return re.match(BESIDE, name) is None


def _alike(given: Tensor, wanted: Tensor) -> bool:
    """Whether a tensor can be loaded for another: quantized values can't replace floats."""
    if given.layout != torch.strided or given.is_meta or given.is_quantized or _is_float8(given):
        return False
    return given.shape == wanted.shape and given.is_floating_point() == wanted.is_floating_point()


def _memory(tensor: Tensor) -> object:
    """Identity of a tensor: equal for all names of a shared parameter, which files contain once."""
    return (tensor.data_ptr(), tensor.shape) if tensor.data_ptr() else id(tensor)


def _is_float8(tensor: Tensor) -> bool:
    """Whether it has a quantized type, which needs a scale."""
    return tensor.is_floating_point() and tensor.element_size() < 2


def _check_finite(trunk: nn.Module, fitting: Mapping[str, Tensor], used: set[str], where: str) -> None:
    """Refuse parameters that are NaN or infinite in modules that are used; buffers such as masks may be infinite."""
    parameters = {name for name, _ in trunk.named_parameters(remove_duplicate=False)}
    bad = [
        name
        for name, tensor in fitting.items()
        if name.rpartition(".")[0] in used
        and tensor.is_floating_point()
        and not bool((tensor.isfinite() if name in parameters else ~tensor.isnan()).all())
    ]
    if bad:
        raise WeightsError(
            f"{where}: {len(bad)} of its parameters contain NaN or infinity: {abbreviate(bad)}. Training diverged, or "
            f"the file is damaged; use an earlier checkpoint"
        )


def _kind(tensor: Tensor) -> str:
    usual = tensor.is_floating_point() and not _is_float8(tensor) and tensor.layout == torch.strided
    return f"{tuple(tensor.shape)}" if usual else f"{tuple(tensor.shape)} {tensor.dtype}"


def _does_not_fit(
    wanted: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    missing: list[str],
    reshaped: list[str],
    unexpected: list[str],
    strange: list[str],
    where: str,
    cure: Callable[[int], str] | None,
) -> str:
    matched = len(wanted) - len(missing) - len(reshaped)
    shapes = [f"{name} is {_kind(state[name])}, the model has {_kind(wanted[name])}" for name in reshaped]
    lines = [
        f"{where} does not fit the model: {matched} of its {len(wanted)} parameters and buffers were matched",
        f"{'matched':<14}{matched:>6}",
        f"{'missing':<14}{len(missing):>6}  {abbreviate(missing)}",
        f"{'other shape':<14}{len(reshaped):>6}  {'; '.join(shapes[:3])}",
        f"{'left over':<14}{len(unexpected):>6}  {abbreviate(sorted(unexpected, key=lambda key: key not in strange))}",
    ]
    advised = cure(len(wanted) - len(missing)) if cure is not None else _by_prefix(wanted, state)
    if advised:
        lines.append(advised)
    elif strange and not missing and not reshaped:
        lines.append(
            f"The file has additional tensors in modules that the layers use, so it belongs to another model. "
            f"If you know that no feature depends on it: weights.ignore=[{strange[0].rpartition('.')[0] or strange[0]}]"
        )
    else:
        lines.append(
            "Is it another model's file? Check model.trunk, model.options, weights.key and weights.remove_prefix."
        )
    return "\n  ".join(lines)


def _by_prefix(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    prefix = _likeliest_prefix(wanted, state)
    count = sum(name.removeprefix(prefix) in wanted for name in state if name.startswith(prefix))
    return f"{count} names would match without their prefix: add weights.remove_prefix={prefix}" if prefix else ""


def _likeliest_prefix(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    candidates = {name[: -len(end)] for end in list(wanted)[:3] for name in state if name.endswith(f".{end}")}
    candidates |= {a + b for a in ("", *PREFIXES) for b in PREFIXES}
    counts = {
        prefix: sum(name.startswith(prefix) and name.removeprefix(prefix) in wanted for name in state)
        for prefix in sorted(candidates)
        if prefix
    }
    best = max(counts, key=lambda prefix: counts[prefix], default="")
    already = sum(name in wanted for name in state)
    return best if best and counts[best] > already else ""
