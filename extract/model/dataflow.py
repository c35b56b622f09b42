"""Which operations led from an image to a model's output, and from which module each was called.

A forward pass is traced operation by operation, below the level of modules. So `F.linear(x, self.weight)`
is seen, too, and tracing works on torch's device `meta`. Tensors are identified by their storage, so a
view counts as the tensor that it views.
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
"""Names that class-token parameters have."""


@dataclass(eq=False, slots=True)
class Step:
    """The last operation that wrote to a storage."""

    operation: str
    """Name in torch's `aten`, without the underscore of in-place operations; "" for an image or a parameter."""

    parents: tuple[Step, ...] = ()
    module: str = ""
    """Path of the innermost module that was running."""

    parameter: str = ""
    """Name, if it is a parameter or buffer."""

    ndim: int = 0
    kernel: tuple[int, ...] = ()
    """Shape of the weight, if it is a convolution."""

    size: int = 0
    """Elements of the first input that depends on the image, as it was viewed."""

    from_image: bool = False
    class_token: bool = False
    """Whether it depends on the parameter of a class token."""

    random: tuple[str, ...] = ()
    """Paths of the modules that drew the random numbers on which it depends."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The input or output of one run of a module."""

    step: Step | None = None
    """None if it was not a single tensor, or its operations could not be traced."""

    shape: tuple[int, ...] = ()


@dataclass(slots=True)
class Flow:
    """One forward pass: what the model returned, and the origin of each tensor."""

    output: Any = None
    image_size: tuple[int, int] = (0, 0)
    """Height and width."""

    runs: dict[str, int] = field(default_factory=dict)
    """How often each module ran."""

    inputs: dict[str, list[Seen]] = field(default_factory=dict)
    outputs: dict[str, list[Seen]] = field(default_factory=dict)

    is_random: bool = False
    """Whether torch drew random numbers."""

    steps: dict[int, tuple[Step, StorageWeakRef | None]] = field(default_factory=dict)
    """By storage; the weak reference shows whether the storage still exists, since its id may be reused."""

    def of(self, tensor: Any) -> Step | None:
        """Return a tensor's origin; None if it was not traced."""
        return self.steps.get(_key(tensor), (None, None))[0] if isinstance(tensor, Tensor) else None

    def note(self, tensor: Tensor, step: Step) -> None:
        """Record the operation that wrote to a tensor."""
        key = _key(tensor)
        weak: Any = StorageWeakRef
        self.steps[key] = (step, weak(tensor.untyped_storage()) if key > 0 else None)

    def seen(self, value: Any) -> Seen:
        """Return a value's origin and shape; for several tensors only the shape of the first."""
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
    """Run a model on one image (1, 3, H, W) and record the origin of its tensors; errors of the model propagate."""
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
    """Record which module is running, and the inputs and outputs of each."""
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
    """Return a module's input: its first argument, or the first tensor given by keyword."""
    for value in args:
        return value
    return next((value for value in kwargs.values() if isinstance(value, Tensor)), None)


def _without_dropout(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation that may draw random numbers draws none, such as attention in eval mode."""
    for index, argument in enumerate(func._schema.arguments):
        if argument.name in ("dropout_p", "p"):
            value = kwargs.get(argument.name, args[index] if index < len(args) else argument.default_value)
            return isinstance(value, float) and value == 0.0
    return False


def _key(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # such as sparse tensors, which have no storage
        return -id(tensor)
