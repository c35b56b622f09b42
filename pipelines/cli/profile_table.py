"""What `bench extract --profile` prints: how busy each step was, which of them sets the pace, and what would help."""

from __future__ import annotations

import torch

from featbench.evaluate.neighbours.backends import multiplies_bfloat16
from featbench.extract.loading import usable_cores
from featbench.extract.profile import Profile, mean_of
from featbench.pipelines.config.pipeline import Pipeline
from featbench.pipelines.extraction.computing import graph_of
from featbench.pipelines.extraction.run import ExtractionReport
from featbench.pipelines.terminal.table import Column, Table

FINGERPRINT = "Decoder, precision and batch size belong to the fingerprint: another one needs another --name."
IN_FINGERPRINT = ("--precision", "--batch-size", "data.decoder")


def profile_table(report: ExtractionReport, pipeline: Pipeline) -> Table:
    """Show where the time of an extraction went, on average over its ranks."""
    mean, ranks = mean_of(report.profiles), len(report.profiles)
    wall = max(mean.seconds, 1e-9)
    waits = {
        "decode": mean.waited_for_images,
        "write": mean.waited_for_writing,
        "forward": mean.waited_for_device,
    }
    rows = []
    for step, what, busy in _steps(mean):
        at_once = max(1, mean.decoders) if step == "decode" else 1
        alone = f"{mean.rows * at_once / busy:,.1f}" if busy > wall / 100 else ""
        waited = f"{waits[step]:.1f}" if step in waits else ""
        rows.append((what, f"{busy:.1f}", f"{busy / at_once / wall:.0%}", alone, waited))
    of = f" in each of {ranks} ranks" if ranks > 1 else ""
    before = report.seconds - mean.seconds
    return Table(
        title=f"{mean.rows:,} images in {wall:.1f} s{of}, {mean.rows / wall:,.1f} images/s",
        columns=(
            Column(name="step", is_right=False),
            Column(name="busy, s"),
            Column(name="of the time"),
            Column(name="alone, images/s"),
            Column(name="waited for, s"),
        ),
        rows=tuple(rows),
        notes=(f"Before and after it: {before:.1f} s (checks, compiling, listing).", verdict(mean, pipeline, report)),
    )


def _steps(mean: Profile) -> list[tuple[str, str, float]]:
    where = f"{mean.decoders} processes" if mean.decoders > 1 else "1 process" if mean.decoders else "no process"
    is_cpu = mean.device == "cpu"
    return [
        ("decode", f"read, decode and transform ({where})", mean.decoding),
        ("copy", "scale to floats" if is_cpu else "copy to the device", mean.copying),
        ("forward", "forward pass and pooling", mean.forward),
        ("back", "convert to float32" if is_cpu else "copy back", mean.copying_back),
        ("write", "check and write", mean.writing),
    ]


def verdict(mean: Profile, pipeline: Pipeline, report: ExtractionReport) -> str:
    """Say which step sets the pace, and what makes it faster."""
    said = {
        "decode": ("Decoding sets the pace", _faster_decoding(mean, pipeline)),
        "forward": ("The forward pass sets the pace", _faster_forward(mean, pipeline, report)),
        "copy": ("Copying sets the pace", ["a smaller transform.crop"]),
        "write": ("Writing sets the pace", ["a faster disk for --store", "--dtype float16", "poolings that keep less"]),
    }
    what, helps = said[mean.slowest]
    needs_name = any(word in help_ for help_ in helps for word in IN_FINGERPRINT)
    return f"{what}. What would help: {'; '.join(helps)}.{f' {FINGERPRINT}' if needs_name else ''}"


def _faster_decoding(mean: Profile, pipeline: Pipeline) -> list[str]:
    share = usable_cores() // pipeline.extract.num_ranks
    helps = [f"--workers {share} ({mean.decoders} now)"] if mean.decoders < share else []
    if pipeline.data.decoder == "pillow" and pipeline.data.source not in ("digits",):
        helps.append("data.decoder=torchvision, for JPEG files")
    return [*helps, "images that are stored smaller, or on a faster disk"]


def _faster_forward(mean: Profile, pipeline: Pipeline, report: ExtractionReport) -> list[str]:
    settings, helps = pipeline.extract, []
    if not all(graph_of(report.features.manifest, name) for name in report.new):
        helps.append("--compile on" if settings.compile == "off" else "a model that can be compiled")
    if settings.precision == "float32" and (mean.device == "cuda" or multiplies_bfloat16()):
        helps.append("--precision tf32 or bfloat16" if mean.device == "cuda" else "--precision bfloat16")
    if mean.device == "cuda":
        helps.append(f"a larger --batch-size ({settings.batch_size} now)")
        if torch.cuda.device_count() > settings.num_ranks:
            helps.append(f"--gpus {torch.cuda.device_count()}")
    elif mean.device == "cpu" and settings.num_ranks == 1:
        helps.append("a GPU")
    return [*helps, "more hosts"]
