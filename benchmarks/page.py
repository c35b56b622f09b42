"""The page of a benchmark: Markdown, JSON and SVG plots, with the hardware, the kernels and every missed target."""

from __future__ import annotations

import html
import json
import os
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from featbench.evaluate.neighbours.faiss_build import faiss_build
from featbench.extract.loading import usable_cores
from featbench.pipelines.doctor.machine import (
    blas_libraries,
    gpu_names,
    memory_bytes,
    processor_name,
    wide_instructions,
)

PACKAGES = ("featbench", "torch", "torchvision", "zarr", "numpy", "scikit-learn")

WIDTH, LEFT, BAR = 900, 420, 22
"""Pixels of a plot: its width, the room for names, and the height of a bar."""

COLORS = {"met": "#4c8c4a", "missed": "#c0392b", "line": "#2c5f8a", "grid": "#cccccc"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement against its yardstick, as printed."""

    group: str
    what: str
    ours: str
    yardstick: str
    ratio: str
    target: str
    """Such as `<= 1.1x`; empty if there is none."""

    @property
    def is_missed(self) -> bool:
        """Whether the ratio is not what the target says."""
        ratio, target = number_in(self.ratio), number_in(self.target)
        if ratio is None or target is None:
            return False
        return ratio > target if self.target.startswith("<=") else ratio < target

    @property
    def score(self) -> float | None:
        """Ratio relative to the target, above 1 if it is better; None without a target."""
        ratio, target = number_in(self.ratio), number_in(self.target)
        if ratio is None or target is None or min(ratio, target) <= 0:
            return None
        return target / ratio if self.target.startswith("<=") else ratio / target


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """How something grows: x and y of each point, both positive."""

    name: str
    """Part of the name of its file."""

    title: str
    x_label: str
    y_label: str
    points: tuple[tuple[float, float], ...]


def number_in(text: str) -> float | None:
    """Return the first number of a text.

    Examples
    --------
    >>> number_in("<= 1.1x"), number_in("1,024 MiB"), number_in("")
    (1.1, 1024.0, None)
    """
    found = re.search(r"-?\d[\d,]*(?:\.\d+)?", text)
    return None if found is None else float(found[0].replace(",", ""))


def hardware() -> dict[str, str]:
    """Return what the measurements ran on: processor, memory, kernels of the libraries, versions."""
    import torch

    wide = ", ".join(wide_instructions()) or "no wide instructions"
    facts = {
        "processor": f"{processor_name()} ({wide})",
        "cores": str(usable_cores()),
        "memory": f"{memory_bytes() / 2**30:.0f} GiB",
    }
    facts |= {f"BLAS of {library.owner}": str(library) for library in blas_libraries()}
    facts["kernels of torch"] = torch.backends.cpu.get_cpu_capability()
    facts["GPU"] = next(iter(gpu_names()), "none")
    facts["Python"] = platform.python_version()
    facts |= {package: version(package) for package in PACKAGES}
    facts["faiss"] = faiss_build().version
    facts["load when it began"] = f"{os.getloadavg()[0]:.1f} processes (other work on the machine changes all figures)"
    return facts


def write(
    folder: Path, stem: str, rows: Sequence[Row], curves: Sequence[Curve], facts: dict[str, str], *, command: str
) -> Path:
    """Write `<stem>.md`, `<stem>.json` and the plots into a folder; return the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "machine": facts,
        "rows": [asdict(row) | {"is_missed": row.is_missed} for row in rows],
        "curves": [asdict(curve) for curve in curves],
    }
    (folder / f"{stem}.json").write_text(json.dumps(content, indent=1) + "\n")
    plots = {}
    if any(row.score is not None for row in rows):
        plots[f"{stem}_targets.svg"] = bars(rows)
    plots |= {f"{stem}_{curve.name}.svg": line(curve) for curve in curves}
    for name, text in plots.items():
        (folder / name).write_text(text)
    page = folder / f"{stem}.md"
    page.write_text(markdown(rows, curves, facts, list(plots), command=command))
    return page


def markdown(
    rows: Sequence[Row], curves: Sequence[Curve], facts: dict[str, str], plots: Sequence[str], *, command: str
) -> str:
    """Return the page."""
    missed = [row for row in rows if row.is_missed]
    counted = sum(row.score is not None for row in rows)
    lines = [f"# Benchmark of {time.strftime('%Y-%m-%d')}", "", f"`{command}`", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", f"{counted - len(missed)} of {counted} targets are met."]
    if "SHORT=1" in command or "--short" in command:
        lines += ["", "The targets hold for the sizes of the full benchmark: at these, fixed costs weigh more."]
    lines += ["", *(f"- **Missed**: {row.what}: {row.ratio}, target {row.target}." for row in missed)] if missed else []
    lines += ["", "| what | ours | yardstick | ratio | target |", "|---|---|---|---|---|"]
    for row in rows:
        ratio = f"**{row.ratio}**" if row.is_missed else row.ratio
        cells = (row.what, row.ours, row.yardstick, ratio, row.target)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    for curve in curves:
        points = ", ".join(f"{x:,.6g}: {y:.3g}" for x, y in curve.points)
        lines += ["", f"{curve.title} ({curve.y_label} by {curve.x_label}): {points}"]
    lines += ["", *(f"![{Path(name).stem}]({name})" for name in plots)]
    return "\n".join(lines) + "\n"


def bars(rows: Sequence[Row]) -> str:
    """Draw how each measurement with a target compares with it: longer is better, the line is the target."""
    scored = [(row, score) for row in rows if (score := row.score) is not None]
    most = max(2.0, *(min(score, 4.0) for _, score in scored))
    scale = (WIDTH - LEFT - 90) / most
    height = BAR * len(scored) + 60
    parts = [_text(LEFT, 18, "relative to the target: right of the line it is met", size=13)]
    for number, (row, score) in enumerate(scored):
        y = 30 + BAR * number
        color = COLORS["missed" if row.is_missed else "met"]
        length = scale * min(score, most)
        parts.append(_text(LEFT - 8, y + 15, _shortened(row.what), anchor="end"))
        parts.append(f'<rect x="{LEFT}" y="{y + 3}" width="{length:.1f}" height="{BAR - 6}" fill="{color}"/>')
        parts.append(_text(LEFT + length + 6, y + 15, f"{row.ratio.split(' ')[0]} ({row.target})"))
    at = LEFT + scale
    parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="26" y2="{height - 24}" stroke="black" stroke-dasharray="4"/>')
    return _svg(height, parts)


def line(curve: Curve) -> str:
    """Draw a curve, both axes logarithmic."""
    height, top, bottom, left, right = 320, 40, 270, 90, WIDTH - 60
    x, y = (np.log10([point[axis] for point in curve.points]) for axis in (0, 1))
    x_at = left + (right - left) * (x - x.min()) / max(float(np.ptp(x)), 1e-9)
    y_at = bottom - (bottom - top) * (y - y.min()) / max(float(np.ptp(y)), 1e-9)
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x_at, y_at, strict=True))
    parts = [_text(left, 20, curve.title, size=14), _text(left, height - 8, f"{curve.x_label} (logarithmic)")]
    parts.append(_text(8, top - 6, f"{curve.y_label} (logarithmic)"))
    parts.append(f'<polyline points="{path}" fill="none" stroke="{COLORS["line"]}" stroke-width="2"/>')
    for (x_value, y_value), a, b in zip(curve.points, x_at, y_at, strict=True):
        parts.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{COLORS["line"]}"/>')
        parts.append(_text(a, b - 8, f"{y_value:.3g}", anchor="middle"))
        parts.append(_text(a, bottom + 18, f"{x_value:,.6g}", anchor="middle"))
    return _svg(height, parts)


def _svg(height: float, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{html.escape(text)}</text>'


def _shortened(text: str, most: int = 62) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
