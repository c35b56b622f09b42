"""A disk on which a process dies at a chosen operation, and one that loses what was not synced.

Both stand between the code and the functions of `os` that change files. `dying` kills: at the chosen operation, and at
all that follow, nothing is done any more and `Killed` is raised, so that no `finally` tidies up; a write is done by
half. `Recorder` notes the operations; from its notes `states_after` makes the states in which a power cut after any
of them may leave the disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

OPERATIONS = ("open", "write", "ftruncate", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir")
REAL = {name: getattr(os, name) for name in OPERATIONS}


class Killed(BaseException):
    """The process is dead from here on."""


@contextmanager
def _instead(function: Callable[..., Any]) -> Iterator[None]:
    """Have `function(name, *arguments, **options)` called for each operation that changes a file."""
    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:

            def operation(*arguments: Any, _name: str = name, **options: Any) -> Any:
                changes = _name != "open" or arguments[1] & os.O_CREAT
                return function(_name, *arguments, **options) if changes else REAL[_name](*arguments, **options)

            patch.setattr(os, name, operation)
        yield


@contextmanager
def dying(at: int) -> Iterator[list[str]]:
    """Die at the operation number `at`, the first being 0; yields the names of those that were begun."""
    begun: list[str] = []

    def operation(name: str, *arguments: Any, **options: Any) -> Any:
        begun.append(name)
        if len(begun) <= at:
            return None if name == "fsync" else REAL[name](*arguments, **options)
        if len(begun) == at + 1 and name == "write":
            REAL[name](arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
        raise Killed

    with _instead(operation):
        yield begun


@contextmanager
def without_waiting() -> Iterator[None]:
    """Sync nothing: tests lose no power, and a busy disk takes long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@dataclass
class Node:
    """A file or a folder: what is there now, and what a power cut leaves for certain."""

    now: dict[str, int] | bytes
    safe: dict[str, int] | bytes | None = None


@dataclass
class Recorder:
    """Notes what happens below a folder."""

    root: Path
    events: list[tuple[Any, ...]] = field(default_factory=list)
    start: dict[int, Node] = field(default_factory=dict)
    _numbers: dict[tuple[int, int], int] = field(default_factory=dict)
    _held: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._walk(self.root)

    def _walk(self, path: Path) -> int:
        number = self._number(path)
        content = {each.name: self._walk(each) for each in path.iterdir()} if path.is_dir() else path.read_bytes()
        self.start[number] = Node(content, content)
        return number

    def _number(self, path: Path | str | int, dir_fd: int | None = None) -> int:
        """Number a file or a folder; it is held, so that the system gives its inode to no other."""
        found = os.stat(path, dir_fd=dir_fd)
        key = found.st_dev, found.st_ino
        if key not in self._numbers:
            self._numbers[key] = len(self._numbers)
            held = os.dup(path) if isinstance(path, int) else REAL["open"](path, os.O_RDONLY, dir_fd=dir_fd)
            self._held.append(held)
        return self._numbers[key]

    def _place(self, path: Path, dir_fd: int | None) -> tuple[int, str]:
        folder, name = os.path.split(os.fspath(path))
        return self._number(folder or ".", dir_fd), name

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Note the operations of what is done inside."""
        try:
            with _instead(self._operation):
                yield
        finally:
            for held in self._held:
                os.close(held)

    def _operation(self, name: str, *arguments: Any, **options: Any) -> Any:
        if name == "fsync":
            self.events.append(("sync", self._number(arguments[0])))
            return None
        if name in ("rename", "replace"):
            places = (
                self._place(arguments[0], options.get("src_dir_fd")),
                self._place(arguments[1], options.get("dst_dir_fd")),
            )
            REAL[name](*arguments, **options)
            self.events.append(("move", *places))
            return None
        if name in ("write", "ftruncate"):
            result = REAL[name](*arguments, **options)
            content = Path(f"/proc/self/fd/{arguments[0]}").read_bytes()
            self.events.append(("content", self._number(arguments[0]), content))
            return result
        place = self._place(arguments[0], options.get("dir_fd"))
        result = REAL[name](*arguments, **options)
        if name in ("unlink", "rmdir"):
            self.events.append(("remove", place))
        else:
            number = self._number(arguments[0], options.get("dir_fd")) if name == "mkdir" else self._number(result)
            self.events.append(("make", place, number, name == "mkdir"))
        return result

    def states_after(self, count: int) -> Iterator[tuple[str, dict[str, bytes | None]]]:
        """Yield the states in which a power cut after `count` operations may leave the disk.

        A state has the content of each file by its path, None for a folder.
        """
        nodes = {number: Node(_copied(node.now), _copied(node.safe)) for number, node in self.start.items()}
        for event in self.events[:count]:
            _apply(nodes, *event)
        root = self._numbers[(self.root.stat().st_dev, self.root.stat().st_ino)]
        for variant, (names, content) in VARIANTS.items():
            state: dict[str, bytes | None] = {}
            _collect(nodes, root, "", state, names, content)
            yield variant, state


def _copied(content: Any) -> Any:
    return dict(content) if isinstance(content, dict) else content


def _apply(nodes: dict[int, Node], kind: str, *event: Any) -> None:
    if kind == "sync":
        nodes[event[0]].safe = _copied(nodes[event[0]].now)
    elif kind == "content":
        nodes[event[0]].now = event[1]
    elif kind == "make":
        (folder, name), number, is_folder = event
        if nodes[folder].now.get(name) != number:
            nodes[number] = Node({} if is_folder else b"", {} if is_folder else None)
            nodes[folder].now[name] = number
    elif kind == "remove":
        folder, name = event[0]
        del nodes[folder].now[name]
    else:
        (source, old), (target, new) = event
        nodes[target].now[new] = nodes[source].now.pop(old)


def _collect(
    nodes: dict[int, Node],
    number: int,
    path: str,
    state: dict[str, bytes | None],
    names: Callable[[Node], dict[str, int]],
    content: Callable[[Node], bytes],
) -> None:
    node = nodes[number]
    if not isinstance(node.now, dict):
        state[path] = content(node)
        return
    if path:
        state[path] = None
    for name, child in names(node).items():
        _collect(nodes, child, f"{path}/{name}" if path else name, state, names, content)


def _synced(node: Node) -> bytes:
    assert isinstance(node.safe, bytes | None)
    return node.safe or b""


def _half(node: Node) -> bytes:
    """What was synced, and half of what was added since."""
    safe, now = _synced(node), node.now
    assert isinstance(now, bytes)
    return safe + now[len(safe) : len(safe) + (len(now) - len(safe)) // 2] if now != safe else safe


VARIANTS = {
    "nothing but what was synced": (lambda node: node.safe, _synced),
    "all names, but no data": (lambda node: node.now, _synced),
    "all names, and half of the data": (lambda node: node.now, _half),
    "removals, but no additions": (lambda node: {n: i for n, i in node.safe.items() if n in node.now}, _synced),
    "additions, but no removals": (lambda node: {**node.now, **node.safe}, _half),
}
"""How a disk may be behind: which names a folder has, and what a file holds."""


def lay_out(state: dict[str, bytes | None], root: Path) -> None:
    """Write a state into an empty folder."""
    root.mkdir(parents=True)
    for path, content in state.items():
        if content is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)
