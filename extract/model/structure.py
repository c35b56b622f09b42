"""What tracing one forward pass shows about a trunk: its classifier, whatever its name, and where its tokens are.

`flatten` is the input of the classifier: of the last linear layer or 1 x 1 convolution on the only
path to the model's output. Only operations without parameters, such as a softmax or a mean over
positions, may follow it. If the output went through a norm or a ReLU, or was added to something
else, it is an embedding and not the output of a classifier.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from featbench.extract.model.dataflow import Flow, Seen, Step, trace
from featbench.extract.model.tap_names import (
    INPUT,
    OUTPUT,
    Structure,
    Tokens,
    body_of,
    named_classifier,
    remember,
    said_classifier,
    structure_of,
    tokens_by_names,
)

LINEAR = ("addmm", "mm", "linear", "matmul", "convolution", "bmm", "baddbmm", "mv", "addmv")
"""Operations that may multiply by a weight."""

RECTIFYING = ("relu", "leaky_relu", "gelu", "silu", "elu", "hardtanh", "hardswish", "mish", "prelu")
"""Operations that turn the output of a linear layer into an embedding; SqueezeNet also applies one to its class scores,
the output of a convolution."""

JOINING = ("add", "sub", "cat", "stack", "maximum", "minimum")
"""Operations that merge the outputs of several heads."""


@dataclass(frozen=True, slots=True)
class _Unclear:
    why: str


def learn(trunk: nn.Module, image: Tensor, *, own: bool) -> Structure:
    """Trace one forward pass of an image (1, 3, H, W), unless the trunk has been traced already.

    Parameters
    ----------
    trunk : nn.Module
        Has already run on such an image. Its heads are ignored.
    own : bool
        Whether it is the user's code. For models of known projects, the name of the classifier is known.
    """
    body = body_of(trunk)[0]
    known = structure_of(body)
    if known is not None:
        return known
    try:
        flow = trace(body, image)
    except Exception:  # some operations can't be traced; a model that can't run would have failed before
        flow = None
    found = _classifier(body, flow, own=own)
    structure = Structure(
        classifier="" if isinstance(found, _Unclear) else found,
        unclear=found.why if isinstance(found, _Unclear) else "",
        tokens=_checked(tokens_by_names(body), body, flow) if flow else tokens_by_names(body),
        random=_random(flow) if flow else (),
    )
    remember(body, structure)
    return structure


def _classifier(body: nn.Module, flow: Flow | None, *, own: bool) -> str | _Unclear:
    """Location of the classifier's input; "" if the output does not come from a classifier."""
    if not own:
        said = said_classifier(body)
        several = [path for path, module in body.named_modules() if isinstance(said, tuple | list) and module in said]
        if len(several) > 1:
            return _several([path + INPUT for path in several])
        named = named_classifier(body)
        return named + INPUT if named else ""
    if flow is None:
        return _Unclear(f"its operations could not be followed. Tap a module, or `{OUTPUT}` for what it returns")
    leaves = _tensors(flow.output)
    if len(leaves) != 1:
        heads = [found for leaf in leaves if isinstance(found := _walk(flow.of(leaf), flow, body), str) and found]
        return _several(list(dict.fromkeys(heads)), returns=f"it returns {len(leaves)} tensors")
    if leaves[0].ndim > 2 and any(side != 1 for side in leaves[0].shape[2:]):
        return ""  # a map, or tokens
    step = flow.of(leaves[0])
    if step is None or not step.from_image:
        return _Unclear(f"its output could not be followed back to the image. Tap a module, or `{OUTPUT}`")
    return _walk(step, flow, body)


def _walk(step: Step | None, flow: Flow, body: nn.Module) -> str | _Unclear:
    """Go back from the output through operations without parameters, to a linear layer or something else."""
    is_rectified = False
    while step is not None and step.from_image and step.operation:
        is_rectified |= step.operation in RECTIFYING
        images = [parent for parent in step.parents if parent.from_image]
        weights = [parent for parent in step.parents if not parent.from_image and _has_parameters(parent)]
        if len(images) > 1:
            return _joined(images, flow, body) if step.operation in JOINING else ""
        (before,) = images
        if step.operation in LINEAR and weights:
            if is_rectified and step.operation != "convolution":
                return ""
            is_pointwise = all(side == 1 for side in step.kernel)
            return _place(step, before, flow, body) if is_pointwise and _has_parameters(before) else ""
        is_bias = step.operation in ("add", "sub") and all(weight.ndim <= 1 for weight in weights)
        is_scale = step.operation in ("mul", "div") and all(weight.ndim == 0 for weight in weights)
        if weights and not is_bias and not is_scale:
            return ""
        step = before
    return ""


def _joined(branches: list[Step], flow: Flow, body: nn.Module) -> str | _Unclear:
    found = [_walk(branch, flow, body) for branch in branches]
    if not all(found):
        return ""  # such as a residual
    unclear = next((each for each in found if isinstance(each, _Unclear)), None)
    if unclear is not None:
        return unclear
    places = list(dict.fromkeys(str(each) for each in found))
    return _several(places) if len(places) > 1 else places[0]


def _place(step: Step, before: Step, flow: Flow, body: nn.Module) -> str | _Unclear:
    """Where the input of a linear operation can be tapped."""
    module = body.get_submodule(step.module)
    if step.module and (isinstance(module, nn.Linear | nn.Conv2d) or not any(True for _ in module.children())):
        runs = flow.runs[step.module]
        if runs > 1:
            return _Unclear(
                f"its classifier {step.module} runs {runs} times on an image. Tap a module before it, "
                f"{step.module + INPUT!r} for the input of its last run, or `{OUTPUT}` for what the model returns"
            )
        return step.module + INPUT
    for path, seen in flow.outputs.items():
        if path and seen[-1].step is before and _numbers(seen[-1]) == step.size and len(seen) == flow.runs[path]:
            return path
    owner = step.module or "its forward"
    weights = ", ".join(parent.parameter for parent in step.parents if parent.parameter) or "a weight"
    return _Unclear(
        f"{owner} computes the output from {weights} itself, so no module returns the classifier's input. "
        f"Tap a module before it, or `{OUTPUT}` for what the model returns"
    )


def _several(places: list[str], returns: str = "it has several classifiers") -> _Unclear:
    taps = ", ".join(repr(place) for place in places)
    instead = f"Tap the input of one of them: {taps}" if places else "Tap a module"
    return _Unclear(f"{returns}. {instead}")


def _checked(tokens: Tokens | None, body: nn.Module, flow: Flow) -> Tokens | None:
    """Keep only what the trace confirms: prefix and grid of the tokens that blocks and the final norm output."""
    if tokens is None or (grid := tokens.grid or _grid(flow)) is None:
        return None
    tokens = dataclasses.replace(tokens, grid=grid)
    patches = grid[0] * grid[1]
    outputs = {block: flow.outputs[block][-1] for block in tokens.blocks if flow.outputs.get(block)}
    given = {block for block, seen in outputs.items() if _is_tokens(seen, patches, tokens.prefix)}
    whole = {block for block in given if outputs[block].shape[1] == patches + tokens.prefix}
    path = next((path for path, module in body.named_modules() if module is tokens.norm), "")
    into, out = (runs[path][-1] if runs.get(path) else Seen() for runs in (flow.inputs, flow.outputs))
    last, final = "", Seen()
    if tokens.blocks and tokens.blocks[-1] in given and into.step is not None and into == outputs[tokens.blocks[-1]]:
        last, final = tokens.blocks[-1], into
    elif _is_tokens(out, patches, tokens.prefix):
        last, final = path, out
    return dataclasses.replace(
        tokens,
        patches_at=frozenset(given),
        class_at=frozenset(block for block in whole if tokens.prefix and _depends_on_class(outputs[block])),
        last=last,
        last_class=bool(last and tokens.prefix) and final.shape[1] > patches and _depends_on_class(final),
    )


def _grid(flow: Flow) -> tuple[int, int] | None:
    """Patches in height and width, from the patch embedding's output: a map, or tokens of a grid like the image's."""
    seen = (flow.outputs.get("patch_embed") or [Seen()])[-1].shape
    if len(seen) == 4:
        return (seen[2], seen[3]) if seen[1] > seen[3] else (seen[1], seen[2])
    if len(seen) != 3:
        return None
    height, width = flow.image_size
    side = next((rows for rows in range(1, seen[1] + 1) if rows * rows * width == seen[1] * height), None)
    return (side, seen[1] // side) if side and seen[1] % side == 0 else None


def _is_tokens(seen: Seen, patches: int, prefix: int) -> bool:
    return seen.step is not None and len(seen.shape) == 3 and seen.shape[1] in (patches, patches + prefix)


def _depends_on_class(seen: Seen) -> bool:
    return seen.step is not None and seen.step.class_token


def _random(flow: Flow) -> tuple[str, ...]:
    """Modules that drew random numbers, whether or not these reached the output."""
    return tuple(sorted({path for step, _ in flow.steps.values() for path in step.random})) or (
        ("its forward",) if flow.is_random else ()
    )


def _has_parameters(step: Step) -> bool:
    """Whether it depends on a parameter."""
    seen, left = set(), [step]
    while left:
        each = left.pop()
        if each.parameter:
            return True
        if id(each) not in seen:
            seen.add(id(each))
            left.extend(each.parents)
    return False


def _tensors(output: Any) -> list[Tensor]:
    """Tensors of what a model returned, however nested."""
    if dataclasses.is_dataclass(output) and not isinstance(output, type | Mapping):
        output = vars(output) if hasattr(output, "__dict__") else {}
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in _tensors(value)]
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _numbers(seen: Seen) -> int:
    count = 1
    for side in seen.shape:
        count *= side
    return count
