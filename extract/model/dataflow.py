"""Which operations led from an image to a model's output, and from which module each was called.

A forward pass is watched operation by operation, below Python's modules: also what a model writes as
`F.linear(x, self.weight)`, and on torch's device without memory. Tensors are told apart by their
storage, so that a view is the tensor it looks at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CLASS_TOKENS = ("cls_token", "class_token")
"""Names of the parameter of a class token."""


@dataclass(eq=False, slots=True)
class Step:
    """What was last written to a storage."""

    operation: str
    """Name in torch's `aten`, without the underscore of those that work in place; "" for an image or a parameter."""

    parents: tuple[Step, ...] = ()
    module: str = ""
    """Path of the innermost module that was running."""

    parameter: str = ""
    """Name of the parameter or buffer that it is."""

    ndim: int = 0
    kernel: tuple[int, ...] = ()
    """Of the weight of a convolution."""

    size: int = 0
    """Numbers in the first tensor from the image that went in, as it was looked at."""

    from_image: bool = False
    class_token: bool = False
    """Whether it depends on the parameter of a class token."""

    random: tuple[str, ...] = ()
    """Paths of the modules in which random numbers entered that it depends on."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What went into a module, or came out of it, in one of its runs."""

    step: Step | None = None
    """None where it was not one tensor, or came from where operations are not seen."""

    shape: tuple[int, ...] = ()


@dataclass(slots=True)
class Flow:
    """One forward pass: what the model returned, and where each tensor came from."""

    output: Any = None
    image_size: tuple[int, int] = (0, 0)
    """Height and width."""

    runs: dict[str, int] = field(default_factory=dict)
    """How often each module ran."""

    inputs: dict[str, list[Seen]] = field(default_factory=dict)
    outputs: dict[str, list[Seen]] = field(default_factory=dict)

    is_random: bool = False
    """Whether torch was asked for random numbers."""

    steps: dict[int, tuple[Step, StorageWeakRef | None]] = field(default_factory=dict)
    """By storage; a weak reference keeps another storage from getting its number."""

    def of(self, tensor: Any) -> Step | None:
        """Return where a tensor came from; None where that was not seen."""
        return self.steps.get(_key(tensor), (None, None))[0] if isinstance(tensor, Tensor) else None

    def note(self, tensor: Tensor, step: Step) -> None:
        """Note what was written to a tensor."""
        key = _key(tensor)
        weak: Any = StorageWeakRef
        self.steps[key] = (step, weak(tensor.untyped_storage()) if key > 0 else None)

    def seen(self, value: Any) -> Seen:
        """Return where a value came from, with its shape; of several tensors only the shape of the first."""
        if isinstance(value, Tensor):
            return Seen(self.of(value), tuple(value.shape))
        first = next((each for each in tree_leaves(value) if isinstance(each, Tensor)), None)
        return Seen() if first is None else Seen(None, tuple(first.shape))


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, flow: Flow, running: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flow = flow
        self.running = running

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        parents = tuple({id(step): step for step in map(self.flow.of, given) if step is not None}.values())
        kernel = tuple(given[1].shape[2:]) if len(given) > 1 and "convolution" in str(func) else ()
        out = func(*args, **kwargs)
        is_random = torch.Tag.nondeterministic_seeded in func.tags and not _without_dropout(func, args, kwargs)
        self.flow.is_random |= is_random
        written = {_key(args[0])} if func._schema.is_mutable and args and isinstance(args[0], Tensor) else set()
        module = self.running[-1] if self.running else ""
        entered = {path for step in parents for path in step.random}
        if is_random:
            entered.add(module or "its forward")
        known = {_key(each) for each in given}
        name = func._schema.name.removeprefix("aten::").strip("_")
        from_image = any(step.from_image for step in parents) and not name.endswith("_like")
        size = next((each.numel() for each in given if (step := self.flow.of(each)) and step.from_image), 0)
        for tensor in (each for each in tree_leaves(out) if isinstance(each, Tensor)):
            key = _key(tensor)
            if key in known - written:
                continue  # a view
            step = Step(
                operation=name,
                parents=parents,
                module=module,
                ndim=tensor.ndim,
                kernel=kernel,
                size=size,
                from_image=from_image,
                class_token=any(parent.class_token for parent in parents),
                random=tuple(sorted(entered)),
            )
            self.flow.note(tensor, step)
        return out


@torch.no_grad()
def trace(trunk: nn.Module, image: Tensor) -> Flow:
    """Run a model on one image (1, 3, H, W) and record where its tensors came from; errors are the model's own."""
    flow, running = Flow(image_size=(image.shape[2], image.shape[3])), list[str]()
    for name, tensor in [*trunk.named_parameters(), *trunk.named_buffers()]:
        is_class_token = name.rpartition(".")[2] in CLASS_TOKENS
        flow.note(tensor, Step(operation="", parameter=name, ndim=tensor.ndim, class_token=is_class_token))
    image = image.clone()
    flow.note(image, Step(operation="", from_image=True))
    with _followed(trunk, flow, running), _Recorder(flow, running):
        flow.output = trunk(image)
    return flow


@contextmanager
def _followed(trunk: nn.Module, flow: Flow, running: list[str]) -> Iterator[None]:
    """Note which module is running, and what goes in and out of each."""
    handles = []

    def begin(path: str, args: Any, kwargs: Any) -> None:
        running.append(path)
        flow.runs[path] = flow.runs.get(path, 0) + 1
        flow.inputs.setdefault(path, []).append(flow.seen(first_tensor(args, kwargs)))

    def end(path: str, output: Any) -> None:
        if running and running[-1] == path:
            running.pop()
        flow.outputs.setdefault(path, []).append(flow.seen(output))

    for path, module in trunk.named_modules():
        before = lambda _, args, kwargs, path=path: begin(path, args, kwargs)  # noqa: E731
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(lambda _m, _i, output, path=path: end(path, output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def first_tensor(args: Iterable[Any], kwargs: dict[str, Any]) -> Any:
    """Return what a module was called with: its first argument, or the first tensor that was given by keyword."""
    for value in args:
        return value
    return next((value for value in kwargs.values() if isinstance(value, Tensor)), None)


def _without_dropout(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation that may draw random numbers is told to draw none, as attention is in eval mode."""
    for index, argument in enumerate(func._schema.arguments):
        if argument.name in ("dropout_p", "p"):
            value = kwargs.get(argument.name, args[index] if index < len(args) else argument.default_value)
            return isinstance(value, float) and value == 0.0
    return False


def _key(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # tensors without a storage, such as sparse ones
        return -id(tensor)
