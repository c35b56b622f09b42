"""The state dict of a trunk and its heads, found in a checkpoint by the file's own keys, or where the user says.

`featbench.extract.weights.families` is the table of known checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featbench.extract.errors import WeightsError
from featbench.extract.weights.families import FAMILIES, Family
from featbench.extract.weights.key_mappings import HEADS, laid_out
from featbench.store import abbreviate, suggest

WRAPPERS = frozenset(("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
"""What DataParallel, torch.compile, FSDP and activation checkpointing add to names, wherever they wrap a module."""

_LOCATION_GIVEN = "told by hand"
"""Enters fingerprints of feature sets, so it stays as version 0.1.0 wrote it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointMatch:
    """A state dict found in a checkpoint."""

    tensors: Mapping[str, Tensor]
    """The trunk's by the model's names, those of heads with the prefix `HEADS`."""

    read_as: str
    """Family, branch and layout, or that the user gave the location."""

    left_out: int = 0
    """Tensors of the file that are not used: projectors, optimizers, the other branch."""

    @property
    def description(self) -> str:
        """How the file was read, for messages."""
        return self.read_as.replace(_LOCATION_GIVEN, "key as configured")


def find_weights(
    content: Any,
    *,
    wanted: Collection[str],
    where: str,
    branch: str | None = None,
    key: str | None = None,
    remove_prefix: str = "",
    add_prefix: str = "",
) -> CheckpointMatch:
    """Find the state dict in a checkpoint, by the file's own keys or where the user says.

    Parameters
    ----------
    content : mapping
        As `read_checkpoint` gives it.
    wanted : collection of str
        Names of the trunk's parameters. If several families match, the first that has some of them is used.
    where : str
        What to call the file in messages.
    branch : str, optional
        Which of several encoders, such as `student`; by default the conventional one (teacher, query, online).
    key, remove_prefix, add_prefix : str
        If any of them is given, no family is tried: the state dict is at the dotted `key`; `remove_prefix` is
        stripped and names without it are dropped; `add_prefix` is prepended. Then `trunk.` is stripped, and names
        that begin with `heads.` belong to heads, as in VISSL.

    Raises
    ------
    WeightsError
        If there is no state dict, or not that branch.
    """
    if isinstance(content, torch.nn.Module):
        content = content.state_dict()
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"{where}: holds a {type(content).__name__}, not a state dict. Save model.state_dict() and give that"
        )
    if key is not None or remove_prefix or add_prefix:
        if branch is not None:
            raise WeightsError(f"{where}: weights.branch={branch} has no effect together with weights.key or a prefix")
        return _at_location(
            content, wanted=wanted, where=where, key=key, remove_prefix=remove_prefix, add_prefix=add_prefix
        )
    tensors = flattened(content)
    if not tensors:
        raise WeightsError(
            f"{where}: contains no tensors; top-level keys: "
            f"{abbreviate([str(name) for name in content], show=8) or 'none'}"
        )
    families = [family for family in FAMILIES if _fits(family, tensors)]
    if not families:
        raise WeightsError(
            f"{where}: unknown kind of checkpoint; its names are {abbreviate(list(tensors))}. "
            + (
                advice(content, wanted, matched=0)
                or "Say where the weights are with weights.key=NAME, weights.remove_prefix=PREFIX"
            )
        )
    first = _taken(families[0], tensors, branch, where, wanted)  # the most specific; its errors are reported
    for family in families[1:]:
        if any(name in wanted for name in first.tensors):
            break
        with suppress(WeightsError):
            other = _taken(family, tensors, None, where, wanted)
            if any(name in wanted for name in other.tensors):
                return other
    return first


def _taken(
    family: Family, tensors: Mapping[str, Tensor], branch: str | None, where: str, wanted: Collection[str]
) -> CheckpointMatch:
    chosen, table = _branch(family, tensors, branch, where)
    taken = {name: new for name in tensors if (new := _renamed(name, table)) is not None}
    state = {taken[name]: tensors[name] for name in taken}
    if len(state) < len(taken):
        first = {new: name for name, new in reversed(taken.items())}
        pairs = [(first[new], name) for name, new in taken.items() if first[new] != name]
        raise WeightsError(
            f"{where}: read as {family.name}, {len(pairs)} tensors occur twice, such as {' and '.join(pairs[0])}. "
            f"Say which to load with weights.key=NAME and weights.remove_prefix=PREFIX"
        )
    layout, state = laid_out(state)
    state = _as_wanted(state, wanted)
    text = family.name if len(family.branches) == 1 else f"{family.name}, {chosen}"
    return CheckpointMatch(
        tensors=state,
        read_as=f"{text}; {layout}" if layout else text,
        left_out=len(tensors) - len(state),
    )


def flattened(content: Mapping[Any, Any], path: str = "", *, unwrap: bool = True) -> dict[str, Tensor]:
    """Return the tensors of nested dictionaries, with keys joined by "/" and without what wrappers add to names."""
    tensors: dict[str, Tensor] = {}
    for name, value in content.items():
        if isinstance(value, Tensor):
            short = _unwrapped(str(name)) if unwrap else str(name)
            tensors[path + (str(name) if short in content or path + short in tensors else short)] = value
        elif isinstance(value, Mapping):
            tensors |= flattened(value, f"{path}{name}/", unwrap=unwrap)
    return tensors


def _unwrapped(name: str) -> str:
    parts = name.split(".")
    return ".".join([part for part in parts[:-1] if part not in WRAPPERS] + parts[-1:])


def _as_wanted(state: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """Rename tensors whose names differ from the model's only by what wrappers add, on either side."""
    state = _with_shared_positions(state, wanted)
    inside: dict[str, list[str]] = {}
    for name in wanted:
        inside.setdefault(_unwrapped(name), []).append(name)
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        known = inside.get(_unwrapped(name), ())
        new = known[0] if len(known) == 1 and name not in wanted and not name.startswith(HEADS) else name
        renamed[name if new in state or new in renamed else new] = tensor
    return renamed


def _with_shared_positions(state: Mapping[str, Tensor], wanted: Collection[str]) -> Mapping[str, Tensor]:
    """Give every block the relative positions that all share in the file, as BEiT does before fine-tuning."""
    end = "relative_position_bias_table"
    shared = f"rel_pos_bias.{end}"
    if shared not in state or shared in wanted:
        return state
    others = {name: tensor for name, tensor in state.items() if name != shared}
    return {name: state[shared] for name in wanted if name.endswith(f".attn.{end}")} | others


def advice(content: Any, wanted: Collection[str], *, matched: int) -> str:
    """Suggest settings with which more names would match; each has been tried. "" if there are none.

    Parameters
    ----------
    content
        The whole file.
    wanted : collection of str
        Names of the trunk's parameters.
    matched : int
        How many of them match without the settings.
    """
    if not isinstance(content, Mapping):
        return ""
    counts: dict[str, int] = {}
    samples = sorted(map(_unwrapped, wanted), key=lambda name: (-name.count("."), name))[:3]  # the most specific
    for raw in flattened(content, unwrap=False):
        path, _, name = raw.rpartition("/")
        for sample in samples:
            if _unwrapped(name) == sample or _unwrapped(name).endswith(f".{sample}"):
                prefix = _before(name, sample)
                key = path.replace("/", ".")
                text = " ".join([f"weights.key={key}"] * bool(key) + [f"weights.remove_prefix={prefix}"] * bool(prefix))
                if text and text not in counts:
                    counts[text] = _num_matched(content, wanted, key or None, prefix)
    best = max(counts.values(), default=0)
    if best <= matched:
        return ""
    suggestions = [text for text, count in counts.items() if count == best]
    return f"{best} names would match without their prefix: add {' or '.join(suggestions[:4])}"


def _before(name: str, sample: str) -> str:
    """Return the prefix of a parameter's name, including what wrappers of the trunk itself add."""
    parts, wanted = name.split("."), sample.split(".")
    while len(parts) > 1 and wanted and (parts[-1] == wanted[-1] or parts[-1] in WRAPPERS):
        if parts.pop() == wanted[-1]:
            wanted.pop()
    if len(parts) == 1 and len(wanted) == 1 and parts == wanted:
        return ""
    return ".".join(parts) + "."


def _num_matched(content: Mapping[Any, Any], wanted: Collection[str], key: str | None, prefix: str) -> int:
    try:
        found = _at_location(content, wanted=wanted, where="", key=key, remove_prefix=prefix, add_prefix="")
    except WeightsError:
        return 0
    return sum(name in found.tensors for name in wanted)


def _fits(family: Family, tensors: Mapping[str, Tensor]) -> bool:
    begins = any(
        name.startswith(beginning) for table in family.branches.values() for beginning in table for name in tensors
    )
    return begins and all(any(re.match(mark, name) for name in tensors) for mark in family.marks)


def _branch(
    family: Family, tensors: Mapping[str, Tensor], wanted: str | None, where: str
) -> tuple[str, Mapping[str, str]]:
    there = [
        branch
        for branch, table in family.branches.items()
        if any(name.startswith(beginning) for beginning in table for name in tensors)
    ]
    usual = next(iter(family.branches))
    chosen = wanted or usual
    if chosen not in family.branches:
        known = suggest(chosen, family.branches)
        raise WeightsError(f"{where}: read as {family.name}, which has no branch {chosen!r}. {known}")
    if chosen not in there:
        raise WeightsError(
            f"{where}: read as {family.name}; expected the branch {chosen}, but it contains only "
            f"{' and '.join(there)}. Give a file that has it, or load the other with weights.branch={there[0]}"
        )
    return chosen, family.branches[chosen]


def _renamed(name: str, table: Mapping[str, str]) -> str | None:
    beginnings = [beginning for beginning in table if name.startswith(beginning)]
    if not beginnings:
        return None
    longest = max(beginnings, key=len)
    new = table[longest] + name.removeprefix(longest)
    inside = new.removeprefix(HEADS)
    return None if "/" in inside else new  # nested dictionaries, such as optimizers, and what a table drops


def _at_location(
    content: Mapping[Any, Any],
    *,
    wanted: Collection[str],
    where: str,
    key: str | None,
    remove_prefix: str,
    add_prefix: str,
) -> CheckpointMatch:
    inner: Any = content
    for part in (key or "").split(".") if key else ():
        if not isinstance(inner, Mapping) or part not in inner:
            known = [str(name) for name in inner] if isinstance(inner, Mapping) else []
            raise WeightsError(f"{where}: it has no key {key!r}. {suggest(part, known)}")
        inner = inner[part]
    if key is None:
        inner = next(
            (inner[usual] for usual in ("state_dict", "model") if isinstance(inner.get(usual), Mapping)), inner
        )
    if not isinstance(inner, Mapping):
        raise WeightsError(f"{where}: {key!r} is a {type(inner).__name__}, not a state dict")
    tensors = {name.replace("/", "."): tensor for name, tensor in flattened(inner, unwrap=False).items()}
    if not tensors:
        raise WeightsError(
            f"{where}: no tensors at {key or 'its top level'}. {suggest('state_dict', [str(name) for name in inner])}"
        )
    stripped = {name.removeprefix(remove_prefix): t for name, t in tensors.items() if name.startswith(remove_prefix)}
    if not stripped:
        raise WeightsError(f"{where}: no name begins with {remove_prefix!r}. They are {abbreviate(list(tensors))}")
    renamed = {add_prefix + name: tensor for name, tensor in stripped.items()}
    if any(name.startswith("trunk.") for name in renamed):
        renamed = {
            HEADS + name.removeprefix("heads.") if name.startswith("heads.") else name.removeprefix("trunk."): tensor
            for name, tensor in renamed.items()
        }
    layout, state = laid_out(renamed)
    state = _as_wanted(state, wanted)
    return CheckpointMatch(
        tensors=state,
        read_as=f"{_LOCATION_GIVEN}; {layout}" if layout else _LOCATION_GIVEN,
        left_out=len(tensors) - len(state),
    )
