"""Checkpoints recognised by their own keys: where in the file the trunk and its heads lie, and what they are called.

A file's content is seen flat: dictionaries within dictionaries are joined by "/", and what DataParallel
and torch.compile put into names (`module.`, `_orig_mod.`) is taken out. DINO's file so holds
`teacher/backbone.cls_token`. Each family is a table from beginnings of such names to the beginnings that
the model has; what a family says nothing of (optimizers, projectors, the other encoder) is left out.
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
from featbench.extract.weights.key_mappings import HEADS, laid_out
from featbench.store import abbreviate, suggest

WRAPPERS = frozenset(("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
"""What DataParallel, torch.compile, FSDP and activation checkpointing put into names, wherever they wrap a module."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One way in which checkpoints are written."""

    name: str
    branches: Mapping[str, Mapping[str, str]]
    """The encoders that a file may hold, the one that is evaluated by default first; of each, where its names begin
    in the file, and how they begin in the model. The longest beginning counts."""

    marks: tuple[str, ...] = ()
    """Patterns, each of which some name must match from its start."""

    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointMatch:
    """A state dict out of a checkpoint."""

    tensors: Mapping[str, Tensor]
    """The trunk's under the model's names, those of heads after `HEADS`."""

    read_as: str
    """Family, branch and layout, or that the user said where."""

    left_out: int = 0
    """Tensors of the file that belong to neither: projectors, optimizers, the other branch."""


def _vissl(where: str) -> dict[str, str]:
    return {f"{where}trunk/": "", f"{where}heads/": HEADS}


FAMILIES: tuple[Family, ...] = (
    Family(
        name="VISSL, DINO",
        branches={
            "teacher": {
                "loss/momentum_teacher.module.trunk.": "",
                "loss/momentum_teacher.module.heads.": HEADS,
                "loss/momentum_teacher.trunk.": "",
                "loss/momentum_teacher.heads.": HEADS,
            },
            "student": _vissl("classy_state_dict/base_model/model/"),
        },
        marks=(r"loss/momentum_teacher\.",),
        source="vissl/losses/dino_loss.py",
    ),
    Family(
        name="VISSL",
        branches={"model": _vissl("classy_state_dict/base_model/model/")},
        source="vissl/utils/checkpoint.py",
    ),
    Family(
        name="VISSL, converted",
        branches={"model": {"model_state_dict/trunk.": "", "model_state_dict/heads.": HEADS, "model_state_dict/": ""}},
        source="vissl/extra_scripts",
    ),
    Family(
        name="MoCo v3",
        branches={
            "base": {"state_dict/base_encoder.": ""},
            "momentum": {"state_dict/momentum_encoder.": ""},
        },
        marks=(r"state_dict/base_encoder\.",),
        source="facebookresearch/moco-v3",
    ),
    Family(
        name="MoCo",
        branches={
            "query": {
                "state_dict/encoder_q.": "",
                "state_dict/encoder_q.fc.": f"{HEADS}0.clf.",
                "state_dict/encoder_q.fc.weight": f"{HEADS}0.clf.0.weight",
                "state_dict/encoder_q.fc.bias": f"{HEADS}0.clf.0.bias",
            },
            "key": {
                "state_dict/encoder_k.": "",
                "state_dict/encoder_k.fc.": f"{HEADS}0.clf.",
                "state_dict/encoder_k.fc.weight": f"{HEADS}0.clf.0.weight",
                "state_dict/encoder_k.fc.bias": f"{HEADS}0.clf.0.bias",
            },
        },
        marks=(r"state_dict/encoder_[qk]\.",),
        source="facebookresearch/moco, v1 and v2; the head is one mlp",
    ),
    Family(
        name="DINOv2",
        branches={"teacher": {"teacher/backbone.": ""}, "student": {"student/backbone.": ""}},
        marks=(r"(teacher|student)/(dino_head|ibot_head)\.",),
        source="facebookresearch/dinov2, dinov3: training checkpoints",
    ),
    Family(
        name="iBOT",
        branches={
            "teacher": {"teacher/backbone.": "", "teacher/head.": f"{HEADS}0."},
            "student": {"student/backbone.": "", "student/head.": f"{HEADS}0."},
        },
        marks=(r"(teacher|student)/(backbone\.masked_embed|head\.(last_layer2|mlp2))",),
        source="bytedance/ibot",
    ),
    Family(
        name="DINO",
        branches={
            "teacher": {
                "teacher/backbone.": "",
                "teacher/head.": f"{HEADS}0.",
                "teacher/head.last_layer.": f"{HEADS}0.prototypes0.",
            },
            "student": {
                "student/backbone.": "",
                "student/head.": f"{HEADS}0.",
                "student/head.last_layer.": f"{HEADS}0.prototypes0.",
            },
        },
        source="facebookresearch/dino",
    ),
    Family(
        name="SimSiam",
        branches={"encoder": {"state_dict/encoder.": "", "state_dict/encoder.fc.": "/projector/"}},
        marks=(r"state_dict/encoder\.fc\.\d", r"state_dict/predictor\."),
        source="facebookresearch/simsiam",
    ),
    Family(
        name="SimCLR",
        branches={"backbone": {"state_dict/backbone.": "", "state_dict/backbone.fc.": f"{HEADS}0.clf."}},
        marks=(r"state_dict/backbone\.fc\.\d",),
        source="sthalles/SimCLR; the head is one mlp",
    ),
    Family(
        name="SimCLR",
        branches={"encoder": {"encoder.": "", "projector.": f"{HEADS}0.clf."}},
        marks=(r"encoder\.", r"projector\."),
        source="spijkervet/SimCLR; the head is one mlp",
    ),
    Family(
        name="BYOL",
        branches={"online": {"online_encoder.net.": ""}, "target": {"target_encoder.net.": ""}},
        marks=(r"(online|target)_encoder\.net\.",),
        source="lucidrains/byol-pytorch",
    ),
    Family(
        name="BYOL",
        branches={"online": {"model/online_network.encoder.": ""}, "target": {"model/target_network.encoder.": ""}},
        marks=(r"model/(online|target)_network\.encoder\.",),
        source="yaox12/BYOL-PyTorch",
    ),
    Family(
        name="Barlow Twins",
        branches={"backbone": {"model/backbone.": "", "model/projector.": f"{HEADS}0.clf."}},
        marks=(r"model/backbone\.", r"model/projector\.", r"model/bn\."),
        source="facebookresearch/barlowtwins; the head is one mlp",
    ),
    Family(
        name="VICReg",
        branches={"backbone": {"model/backbone.": ""}},
        marks=(r"model/backbone\.", r"model/projector\."),
        source="facebookresearch/vicreg",
    ),
    Family(
        name="SwAV or DeepCluster",
        branches={
            "model": {
                f"{where}{name}": target
                for where in ("state_dict/", "")
                for name, target in {
                    "": "",
                    "projection_head.": f"{HEADS}0.projection_head.",
                    "prototypes.": f"{HEADS}0.prototypes0.",
                    "prototypes.prototypes": f"{HEADS}0.prototypes",
                }.items()
            }
        },
        marks=(r"(state_dict/)?projection_head\.", r"(state_dict/)?prototypes\."),
        source="facebookresearch/swav",
    ),
    Family(
        name="MAE",
        branches={"encoder": {"model/": "", "model/mask_token": "/decoder/", "model/decoder_": "/decoder/"}},
        marks=(r"model/(decoder_embed\.|mask_token)",),
        source="facebookresearch/mae",
    ),
    Family(
        name="solo-learn",
        branches={
            "online": {"state_dict/backbone.": "", "state_dict/encoder.": ""},
            "momentum": {"state_dict/momentum_backbone.": "", "state_dict/momentum_encoder.": ""},
        },
        marks=(r"state_dict/(momentum_)?(backbone|encoder)\.", r"state_dict/(momentum_)?(classifier|projector)\."),
        source="vturrisi/solo-learn",
    ),
    Family(
        name="Lightning",
        branches={
            "model": {
                f"state_dict/{name}": ""
                for name in ("backbone.", "encoder.", "model.", "net.", "trunk.", "model.backbone.", "model.encoder.")
            }
        },
        marks=(r"state_dict/(backbone|encoder|model|net|trunk)\.",),
        source="LightningModules that call their trunk backbone, encoder, model, net or trunk",
    ),
    Family(
        name="I-JEPA",
        branches={"target": {"target_encoder/": ""}, "context": {"encoder/": ""}},
        marks=(r"target_encoder/", r"predictor/"),
        source="facebookresearch/ijepa",
    ),
    Family(
        name="with moving average",
        branches={"average": {"ema_model.": ""}, "model": {"online_model.": ""}},
        marks=(r"ema_model\.", r"online_model\."),
        source="lucidrains/ema-pytorch",
    ),
    Family(name="DeepSpeed", branches={"model": {"module/": ""}}, source="engine.save_checkpoint, without ZeRO-3"),
    Family(name="teacher and student", branches={"teacher": {"teacher/": ""}, "student": {"student/": ""}}),
    Family(
        name="with moving average",
        branches={"average": {"state_dict_ema/": ""}, "model": {"state_dict/": ""}},
        marks=(r"state_dict_ema/",),
        source="timm",
    ),
    Family(
        name="with moving average",
        branches={"average": {"model_ema/": ""}, "model": {"model/": ""}},
        marks=(r"model_ema/",),
        source="torchvision's references, ConvNeXt",
    ),
    Family(name="state dict", branches={"model": {"state_dict/": ""}}, source="timm, torchvision's ImageNet example"),
    Family(name="state dict", branches={"model": {"model/": ""}}, source="torchvision's references, DeiT, MAE"),
    Family(
        name="state dict",
        branches={"model": {"": ""}},
        marks=(r"[^/]+$",),
        source="model.state_dict(): torchvision, timm, DINO, DINOv2, Hugging Face's hub",
    ),
)
"""In the order in which they are tried."""


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
    """Find the state dict in a checkpoint, by the file's own keys or as it is told.

    Parameters
    ----------
    content : mapping
        As `read_checkpoint` gives it.
    wanted : collection of str
        Names of the trunk's parameters: of several families that could be meant, one that has some of them counts.
    where : str
        What to call the file in messages.
    branch : str, optional
        Which of several encoders, such as `student`; by default the one that is evaluated by custom.
    key, remove_prefix, add_prefix : str
        Given any of them, no family is looked for: the state dict lies under the dotted `key`; of its names those
        that begin with `remove_prefix` are taken, without it; `add_prefix` is put before them. Then `trunk.` is
        taken off, and what begins with `heads.` belongs to heads, as in VISSL.

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
            raise WeightsError(f"{where}: weights.branch={branch} has no effect besides weights.key or a prefix")
        return _by_hand(
            content, wanted=wanted, where=where, key=key, remove_prefix=remove_prefix, add_prefix=add_prefix
        )
    tensors = flattened(content)
    if not tensors:
        raise WeightsError(
            f"{where}: no tensors in it; at its top are "
            f"{abbreviate([str(name) for name in content], show=8) or 'no names'}"
        )
    families = [family for family in FAMILIES if _fits(family, tensors)]
    if not families:
        raise WeightsError(
            f"{where}: no family of checkpoints that is known; its names are {abbreviate(list(tensors))}. "
            + (
                advice(content, wanted, matched=0)
                or "Say where it lies with weights.key=NAME, weights.remove_prefix=PREFIX"
            )
        )
    first = _taken(families[0], tensors, branch, where, wanted)  # the most particular; its faults are the user's
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
            f"{where}: read as {family.name}, {len(pairs)} tensors are there twice, such as {' and '.join(pairs[0])}. "
            f"Say which with weights.key=NAME and weights.remove_prefix=PREFIX"
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
    """Return the tensors of nested dictionaries, their names joined by "/", without what wrappers add to names."""
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
    """Give tensors the model's names where only wrappers make the difference, on either side."""
    inside: dict[str, list[str]] = {}
    for name in wanted:
        inside.setdefault(_unwrapped(name), []).append(name)
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        known = inside.get(_unwrapped(name), ())
        new = known[0] if len(known) == 1 and name not in wanted and not name.startswith(HEADS) else name
        renamed[name if new in state or new in renamed else new] = tensor
    return renamed


def advice(content: Any, wanted: Collection[str], *, matched: int) -> str:
    """Say what to type where more names would match than did: each proposal has been tried; "" if there is none.

    Parameters
    ----------
    content
        The whole file.
    wanted : collection of str
        Names of the trunk's parameters.
    matched : int
        How many of them were matched without.
    """
    if not isinstance(content, Mapping):
        return ""
    counts: dict[str, int] = {}
    samples = sorted(map(_unwrapped, wanted), key=lambda name: (-name.count("."), name))[:3]  # the most particular
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
    proposals = [text for text, count in counts.items() if count == best]
    return f"{best} names would match without their prefix: add {' or '.join(proposals[:4])}"


def _before(name: str, sample: str) -> str:
    """What stands before a parameter's name, wrappers of the trunk itself included."""
    parts, wanted = name.split("."), sample.split(".")
    while len(parts) > 1 and wanted and (parts[-1] == wanted[-1] or parts[-1] in WRAPPERS):
        if parts.pop() == wanted[-1]:
            wanted.pop()
    if len(parts) == 1 and len(wanted) == 1 and parts == wanted:
        return ""
    return ".".join(parts) + "."


def _num_matched(content: Mapping[Any, Any], wanted: Collection[str], key: str | None, prefix: str) -> int:
    try:
        found = _by_hand(content, wanted=wanted, where="", key=key, remove_prefix=prefix, add_prefix="")
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
            f"{where}: read as {family.name}, whose {chosen} is to be evaluated, but it holds only the "
            f"{' and '.join(there)}. Give a file that has it, or take the other with weights.branch={there[0]}"
        )
    return chosen, family.branches[chosen]


def _renamed(name: str, table: Mapping[str, str]) -> str | None:
    beginnings = [beginning for beginning in table if name.startswith(beginning)]
    if not beginnings:
        return None
    longest = max(beginnings, key=len)
    new = table[longest] + name.removeprefix(longest)
    inside = new.removeprefix(HEADS)
    return None if "/" in inside else new  # deeper dictionaries, such as optimizers, and what a table sets aside


def _by_hand(
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
            raise WeightsError(f"{where}: no {key!r} in it. {suggest(part, known)}")
        inner = inner[part]
    if key is None:
        inner = next(
            (inner[usual] for usual in ("state_dict", "model") if isinstance(inner.get(usual), Mapping)), inner
        )
    if not isinstance(inner, Mapping):
        raise WeightsError(f"{where}: {key!r} is a {type(inner).__name__}, not a state dict")
    tensors = {name.replace("/", "."): tensor for name, tensor in flattened(inner, unwrap=False).items()}
    if not tensors:
        raise WeightsError(f"{where}: no tensors there. {suggest('state_dict', [str(name) for name in inner])}")
    kept = {name.removeprefix(remove_prefix): t for name, t in tensors.items() if name.startswith(remove_prefix)}
    if not kept:
        raise WeightsError(f"{where}: no name begins with {remove_prefix!r}. They are {abbreviate(list(tensors))}")
    told = {add_prefix + name: tensor for name, tensor in kept.items()}
    if any(name.startswith("trunk.") for name in told):
        told = {
            HEADS + name.removeprefix("heads.") if name.startswith("heads.") else name.removeprefix("trunk."): tensor
            for name, tensor in told.items()
        }
    layout, state = laid_out(told)
    state = _as_wanted(state, wanted)
    return CheckpointMatch(
        tensors=state,
        read_as=f"told by hand; {layout}" if layout else "told by hand",
        left_out=len(tensors) - len(state),
    )
