"""Rewrite the sample outputs in README.md and docs/first-five-minutes.md from real runs: `make samples`.

A sample stands between `<!-- sample: NAME -->` and `<!-- end -->`. `demo` takes a minute; `trained` and the first five
minutes need photographs and weights, which are looked for where the tests look for them, and keep their text without
them.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import termios
from collections.abc import Sequence
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("BENCH_SHARED", ROOT.parent / "shared"))
PHOTOGRAPHS, WEIGHTS = SHARED / "data/clothing", SHARED / "data/weights/squeezenet1_0-imagenet.pth"

DEMO = (("extract", "digits"), ("evaluate", "digits", "--k", "5,20"))
TRAINED = (
    (
        "extract", "folder", "--data", PHOTOGRAPHS, "--weights", WEIGHTS, "--val-split", "test", "--name", "clothing",
        "--layers", "features.3,features.5,features.7,features.9,features.10,features.12", "model.trunk=squeezenet1_0",
        "transform.mean=[123/255,117/255,104/255]", "transform.std=[1/255,1/255,1/255]",
    ),
    ("evaluate", "--features", "clothing", "--k", "20", "--markdown"),
)  # fmt: skip

FIRST = "docs/first-five-minutes.md"
"""A page whose commands are run one after the other, as they are written in it."""

COLUMNS = 80
"""Width of the terminal whose output is shown."""


def output_of(commands: tuple[tuple[str | Path, ...], ...]) -> str:
    """Run commands in an empty folder, and return what the last one prints in a terminal without colours."""
    with tempfile.TemporaryDirectory() as folder:
        for words in commands:
            printed = printed_by([*map(str, words), "--quiet"], folder)
    return printed


def printed_by(words: Sequence[str], folder: str | Path) -> str:
    """Run one command of bench in a folder, and return what it prints in a terminal without colours."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (50, COLUMNS))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # as in an activated environment
    with subprocess.Popen(
        [sys.executable, "-m", "featbench", *words], cwd=folder, stdout=theirs,
        env={**os.environ, "TERM": "dumb", "PATH": path},
    ) as ran:  # fmt: skip
        os.close(theirs)
        printed = b"".join(iter(partial(_read, ours), b""))
    if ran.returncode:
        raise subprocess.CalledProcessError(ran.returncode, ran.args)
    os.close(ours)
    return printed.decode().replace("\r\n", "\n")


def _read(terminal: int) -> bytes:
    """Read what is there; nothing once no process has the terminal open, which is an error of the system."""
    try:
        return os.read(terminal, 2**16)
    except OSError:
        return b""


def demo() -> str:
    """What `make demo` prints, of k = 5 and 20."""
    return f"```\n{output_of(DEMO).rstrip()}\n```"


def trained() -> str | None:
    """Accuracies of a network with ImageNet's weights, as a table in Markdown."""
    if not WEIGHTS.exists():
        return None
    return "\n".join(line.rstrip() for line in output_of(TRAINED).splitlines() if line.startswith("|"))


def first_minutes(page: str) -> str:
    """Run the commands above each sample of the page, and put in what the last of them prints."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "clothing").symlink_to(PHOTOGRAPHS)
        (Path(folder) / WEIGHTS.name).symlink_to(WEIGHTS)
        (Path(folder) / "my-jacket.jpg").symlink_to(sorted((PHOTOGRAPHS / "validation/outwear").glob("*.jpg"))[0])
        parts = re.split(r"(?<=<!-- end -->\n)", page)
        for number, part in enumerate(parts):
            if (found := re.search(r"<!-- sample: ([\w-]+) -->", part)) is None:
                continue
            blocks = "".join(re.findall(r"^```\n(.*?)^```", part[: found.start()], re.DOTALL | re.MULTILINE))
            commands = [shlex.split(line, comments=True) for line in blocks.replace("\\\n", " ").splitlines()]
            for words in [each for each in commands if each[:1] == ["bench"]]:
                printed = printed_by(words[1:], folder)
            shown = printed.rstrip().replace(sys.prefix, ".venv").replace(str(ROOT), "bench").replace(folder, ".")
            parts[number] = replaced(part, found[1], f"```\n{shown}\n```")
    return "".join(parts)


def replaced(page: str, name: str, sample: str) -> str:
    """The page with another text for a sample."""
    pattern = rf"(<!-- sample: {name} -->\n).*?(<!-- end -->)"
    page, count = re.subn(pattern, lambda match: f"{match[1]}{sample}\n{match[2]}", page, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"sample {name} must be in the page once; it is {count} times")
    return page


def main() -> None:
    """Write all samples."""
    page = ROOT / "README.md"
    text = page.read_text(encoding="utf-8")
    for name, make in (("demo", demo), ("trained", trained)):
        sample = make()
        if sample is None:
            print(f"{name}: kept, since there is no {WEIGHTS}", file=sys.stderr)
        else:
            text = replaced(text, name, sample)
    page.write_text(text, encoding="utf-8")
    if WEIGHTS.exists():
        page = ROOT / FIRST
        page.write_text(first_minutes(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
