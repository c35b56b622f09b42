"""YAML and JSON from users: what it means stays, what is beyond the bounds is refused in few words."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import yaml

from featbench.pipelines import config
from featbench.pipelines.config.documents import parse_yaml, read_yaml
from featbench.store.documents import DocumentError, brief, parse_json

SHIPPED = sorted(Path(config.__file__).parent.glob("*.yaml"))


def bomb(levels: int = 8, width: int = 9) -> str:
    lines = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_is_within_bounds_means_what_yaml_says(path: Path) -> None:
    assert read_yaml(path) == yaml.safe_load(path.read_text())


def test_aliases_and_merged_keys_keep_their_meaning() -> None:
    text = "base: &b {k: [1, 2], t: 0.5}\nmine: {<<: *b, t: 1}\nlist: [*b, *b]"
    assert parse_yaml(text, where="x") == yaml.safe_load(text)


HOSTILE = {
    "an alias bomb": (bomb(), "more than 50,000 values"),
    "a bomb of merged keys": (
        "a: &a {k0: 1, k1: 1}\n" + "\n".join(f"b{i}: &b{i} {{<<: [{'*a, ' * 40}*a], z: 1}}" for i in range(700)),
        "more than 50,000 values",
    ),
    "deep lists": ("[" * 20_000, "nested deeper than 64"),
    "deep mappings": ("{a: " * 20_000, "nested deeper than 64"),
    "deep blocks": ("\n".join(" " * i + "a:" for i in range(500)), "nested deeper than 64"),
    "a list in itself": ("a: &a [*a]", "alias 'a' holds itself"),
    "a key that occurs twice": ("a: 1\nb: 2\na: 3", "'a' occurs twice"),
    "a key that occurs twice within": ("a: {k: [1], k: [2]}", "'k' occurs twice"),
    "too many characters": ("a: " + "x" * 300_000, "expected at most"),
    "too many values": ("[" + "1," * 60_000 + "1]", "more than 50,000 values"),
    "a number of many digits": ("a: " + "9" * 5000, "not YAML"),
    "a date that is none": ("a: 2001-99-99", "not YAML"),
    "a tag that is no type": ("a: !!bool x", "not YAML"),
    "a tag of another type": ("- !!timestamp x", "not YAML"),
    "a call": ("a: !!python/object/apply:os.system [ls]", "not YAML"),
    "a control character": ("a: \x1b[2J", "not YAML"),
    "an alias of a long name": ("a: *" + "b" * 9999, "not YAML"),
    "two documents": ("a: 1\n---\nb: 2", "not YAML"),
    "a key that is a list": ("? [a]\n: b", "not YAML"),
}


@pytest.mark.parametrize(("text", "says"), HOSTILE.values(), ids=HOSTILE)
def test_yaml_beyond_the_bounds_is_refused_at_once_and_in_few_words(text: str, says: str) -> None:
    start = time.process_time()
    with pytest.raises(DocumentError, match=says) as refusal:
        parse_yaml(text, where="x.yaml")
    assert time.process_time() - start < 20
    assert str(refusal.value).startswith("x.yaml: ")
    assert len(str(refusal.value)) < 600
    assert "\x1b" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a": 1, "a": 2}', "'a' occurs twice"),
        ("9" * 5000, "not JSON"),
        (b"\xff", "not JSON"),
        ("{", "not JSON"),
    ],
)
def test_json_that_cannot_be_read_is_refused(text: bytes | str, says: str) -> None:
    with pytest.raises(DocumentError, match=says) as refusal:
        parse_json(text, where="x.json")
    assert len(str(refusal.value)) < 600


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for path, says in (
        (tmp_path / "pipe.yaml", "not a regular file"),
        (tmp_path, "a folder"),
        (tmp_path / "gone.yaml", "cannot be read: No such file"),
        (Path("a\0b.yaml"), "cannot be the path of a file"),
        (Path("/dev/zero"), "not a regular file"),
    ):
        with pytest.raises(DocumentError, match=says):
            read_yaml(path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfname: \xc3\xa9t\xc3\xa9\n")
    assert read_yaml(tmp_path / "x.yaml") == {"name": "été"}


def test_values_in_messages_are_short_however_deep_they_are() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert len(brief(deep)) <= 80
    assert len(brief("x" * 10**6)) <= 80
    assert brief([1, "a"]) == "[1, 'a']"
