"""Rewrite the sample outputs in README.md from real runs: `make samples`.

A sample stands between `<!-- sample: NAME -->` and `<!-- end -->`. `demo` takes a minute; `trained` needs photographs
and weights, which are looked for where the tests look for them, and keeps its text without them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import termios
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


COLUMNS = 80
"""Width of the terminal whose output is shown."""


def output_of(commands: tuple[tuple[str | Path, ...], ...]) -> str:
    """Run commands in an empty folder, and return what the last one prints in a terminal without colours."""
    with tempfile.TemporaryDirectory() as folder:
        for words in commands:
            ours, theirs = os.openpty()
            termios.tcsetwinsize(theirs, (50, COLUMNS))
            with subprocess.Popen(
                [sys.executable, "-m", "featbench", *map(str, words), "--quiet"],
                cwd=folder, stdout=theirs, env={**os.environ, "TERM": "dumb"},
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


if __name__ == "__main__":
    main()
