"""Whether layers are computed by the eager forward pass or by a compiled graph, and in which form of the trunk.

It is decided once for each layer, by the first rank under the lock, before any chunk of it is written, and recorded in
the manifest (`notes.computed`). Other ranks and later runs do as it says, so no layer mixes both. A compiled layer is
recorded with all layers of its graph, because the same graph has to be compiled again for the same bytes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from featbench.extract.model.compiling import (
    CannotCompileError,
    CompiledTrunk,
    paired_seconds,
    probe_pixels,
    refuse_disagreement,
    seconds_of,
)
from featbench.extract.model.rewriting import CannotRewriteError
from featbench.extract.model.taps import Forward
from featbench.extract.passes import autocast
from featbench.pipelines.config.pipeline import Pipeline
from featbench.pipelines.extraction.checking import CheckedPipeline
from featbench.pipelines.extraction.forms import FOLDED, LOW, PLAIN, WEIGHTS, Tapped, in_form
from featbench.pipelines.extraction.same_model import spec_of
from featbench.store import FeatureSet, LayerSpec, Manifest, MismatchError
from featbench.store.typing import Json

logger = logging.getLogger(__name__)

COMPUTED = "computed"
"""Key of the manifest's notes: for each layer, its `graph` (layers that are compiled together; none if it is eager),
the `form` of the trunk (`featbench.pipelines.extraction.forms`), the `setting` and the reason, and the software and
hardware."""

SHORT_S = 120.0
"""`auto` compiles nothing that takes less time than this: compiling a ResNet-50 takes 15 to 35 s of two idle cores."""

MUCH_FASTER = 1.05
"""`auto` takes the compiled graph if it is at least this much faster."""

CPU_BATCH = 16
"""Images in the first, timed pass on a CPU at most."""

AGREEMENT_BATCH = 4
"""Images that are compared when only the agreement is checked."""

WAYS_ON = (
    "A layer is computed in one way only, since the last bits differ. Nothing was written. Give --compile auto, which "
    "goes on as the layer was begun, choose another --name, or replace the feature set with --overwrite."
)


def graph_of(manifest: Manifest, layer: str) -> tuple[str, ...] | None:
    """Layers of the graph that computes a layer: none if it is eager; None if that is not decided yet."""
    if layer not in manifest.layers:
        return None
    record = manifest.notes.get(COMPUTED, {}).get(layer, {"graph": []})  # earlier versions were always eager
    return tuple(record["graph"]) if "graph" in record else None


def form_of(manifest: Manifest, layer: str) -> str:
    """Return the form of the trunk that computes a layer; in earlier versions it was always as it was built."""
    return str(manifest.notes.get(COMPUTED, {}).get(layer, {}).get("form", PLAIN))


def conflicts(pipeline: Pipeline, manifest: Manifest) -> list[str]:
    """Say which layers were begun in another way than the pipeline asks for."""
    setting, records = pipeline.extract.compile, manifest.notes.get(COMPUTED, {})
    found = []
    for name in (spec.name for spec in pipeline.layers):
        graph = graph_of(manifest, name)
        if graph and setting == "off":
            found.append(f"layer {name}: it is computed by a compiled graph, you ask for extract.compile=off")
        # A model that could not be compiled was run eagerly by the same command before.
        if graph == () and setting == "on" and records.get(name, {}).get("setting") != "on":
            found.append(f"layer {name}: it is computed eagerly, you ask for extract.compile=on")
    return found


def undecided(layers: Iterable[str], manifest: Manifest) -> list[str]:
    """Layers for which it is still to be decided."""
    return [name for name in layers if graph_of(manifest, name) is None]


def too_short(seconds: float) -> str:
    """Say that work is too short to compile; "" if it is not."""
    return "" if seconds >= SHORT_S else f"{seconds:.0f} s of eager work are too short for compiling to pay"


def _all_of(passes: Sequence[Forward], images: Tensor) -> dict[str, Tensor]:
    return {name: values for forward in passes for name, values in forward(images).items()}


def planned(pipeline: Pipeline, manifest: Manifest | None, layers: Sequence[str], seconds: float | None) -> str:
    """Say what will compute layers, as far as that is known before it starts.

    Parameters
    ----------
    manifest : Manifest, optional
        Of the feature set, if there is one.
    seconds : float, optional
        The eager work of each rank, if it was measured.
    """
    graphs: Mapping[str, tuple[str, ...] | None] = {
        name: graph_of(manifest, name) if manifest else None for name in layers
    }
    begun = {name: graph for name, graph in graphs.items() if graph is not None}
    told = [f"{name} {'compiled' if graph else 'eager'}, as it was begun" for name, graph in begun.items()]
    setting = pipeline.extract.compile
    if len(begun) < len(graphs):
        if setting == "off":
            told.append("eager (--compile off)")
        elif setting == "on":
            told.append("compiled; eager if it can't be, or gives other features")
        elif seconds is not None and too_short(seconds):
            told.append(f"eager: {too_short(seconds)}")
        else:
            told.append("compiled if a test finds it faster and equal, which takes about a minute; otherwise eager")
    return "; ".join(told)


@dataclass(slots=True, kw_only=True)
class Computation:
    """What computes the layers of an extraction in this process."""

    checked: CheckedPipeline
    features: FeatureSet
    compiled: dict[tuple[str, ...], CompiledTrunk] = field(default_factory=dict)
    """Graphs that this process has compiled, by their layers."""

    trunks: dict[tuple[tuple[str, ...], str], Tapped] = field(default_factory=dict)
    """Trunks that were made while it was decided, by layers and form."""

    compile_s: float = 0.0
    """How long the last graph took to compile."""

    eager_s: float = 0.0
    """How long an image takes in the eager pass; 0 if it was not measured."""

    def refuse_conflicts(self) -> None:
        """Refuse to go on with layers that were begun in another way than the pipeline asks for."""
        found = conflicts(self.checked.pipeline, self.features.manifest)
        if found:
            raise MismatchError(f"{self.features.path}:\n  " + "\n  ".join(found) + f"\n{WAYS_ON}")

    def decide(self, device: torch.device, *, ranks: int, is_stopping: Callable[[], bool]) -> dict[str, Json] | None:
        """Decide how the layers that are still undecided are computed; returns what the manifest records of them.

        What was made for it is kept for this process.

        Returns
        -------
        dict of str to JSON
            By layer; None if a signal came in the meantime, which also ends the compiler.
        """
        settings = self.checked.pipeline.extract
        layers = undecided(self.checked.layers, self.features.manifest)
        if not layers:
            return {}
        form, why = PLAIN, ""
        graph: tuple[str, ...] = ()
        reason = "the setting"
        self.compile_s = 0.0
        # The compiler folds batch norms itself: a form is only needed before it where weights in low precision, or
        # the speed of the eager pass, decide something.
        form_is_needed_first = settings.compile != "on" or settings.precision in LOW
        if form_is_needed_first:
            form, why = self._choose_form(device, layers, ranks)
        if settings.compile != "off":
            graph, reason = self._compile_if_it_pays(device, layers, form, ranks)
            form = form if form == WEIGHTS or not graph else PLAIN
            if is_stopping():
                return None
        if not graph and not form_is_needed_first:
            form, why = self._choose_form(device, layers, ranks)
        record: Json = {
            "graph": list(graph),
            "form": form,
            **({"form_reason": why} if why else {}),
            "setting": settings.compile,
            "reason": reason,
            "compile_s": round(self.compile_s, 1),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "kernels": torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else "",
        }
        return dict.fromkeys(layers, record)

    def _choose_form(self, device: torch.device, layers: Sequence[str], ranks: int) -> tuple[str, str]:
        """Return the form of the trunk, and why it is not another one; "" if that goes without saying."""
        precision, begun = self.checked.pipeline.extract.precision, self._begun_eager(layers)
        if begun:
            return form_of(self.features.manifest, begun), f"that of {begun}, which the same pass computes"
        try:
            is_other = self._tapped(device, layers, FOLDED).trunk is not self.checked.model
            form, why = FOLDED if is_other else PLAIN, ""
        except CannotRewriteError as error:
            form, why = PLAIN, str(error)
        if precision not in LOW:
            return form, why
        why = self._why_too_short(device, layers, form, ranks)
        if why:
            return form, why
        try:
            low = self._tapped(device, layers, WEIGHTS)
        except CannotRewriteError as error:
            return form, str(error)
        images = self._images(device, self._probe_size(device))
        with autocast(device, precision):
            cast_s, low_s = paired_seconds(self._tapped(device, layers, form), low, images)
        why = f"with {precision} weights it is {cast_s / low_s:.2f} times as fast as in autocast"
        return WEIGHTS if cast_s >= MUCH_FASTER * low_s else form, why

    def _compile_if_it_pays(
        self, device: torch.device, layers: Sequence[str], form: str, ranks: int
    ) -> tuple[tuple[str, ...], str]:
        """Return the layers of the compiled graph, none if they are to be eager, and the reason."""
        settings, name = self.checked.pipeline.extract, self.checked.pipeline.model.trunk
        is_auto = settings.compile == "auto"
        if is_auto:
            begun = self._begun_eager(layers)  # a second pass would take more than it gives
            reason = f"{begun}, which the same pass computes, is eager" if begun else ""
            reason = reason or self._why_too_short(device, layers, form, ranks)
            if reason:
                logger.info("%s runs eagerly: %s", name, reason)
                return (), reason
        logger.info("compiling %s for batches of %d; it takes about half a minute", name, settings.images_per_batch)
        try:
            reason = self._compile(device, tuple(layers), form, compare_speed=is_auto)
        except CannotCompileError as error:
            logger.warning("%s runs eagerly: %s", name, error)
            return (), str(error)
        is_taken = tuple(layers) in self.compiled
        logger.info("%s %s: %s", name, "is compiled" if is_taken else "runs eagerly", reason)
        return tuple(layers) if is_taken else (), reason

    def _begun_eager(self, layers: Sequence[str]) -> str:
        """Name a layer that the same pass has to go on with eagerly; "" if there is none."""
        manifest = self.features.manifest
        begun = [name for name in self.checked.layers if name not in layers and graph_of(manifest, name) == ()]
        return begun[0] if begun and self.features.pending(begun) else ""

    def _why_too_short(self, device: torch.device, layers: Sequence[str], form: str, ranks: int) -> str:
        """Say why the work is too short to look for something faster; "" if it is not."""
        if not self.eager_s:
            taps, images = self._tapped(device, layers, form), self._images(device, self._probe_size(device))
            with autocast(device, self.checked.pipeline.extract.precision):
                taps(images)
                self.eager_s = seconds_of(taps, images) / len(images)
        return too_short(self.eager_s * sum(len(each.labels) for each in self.checked.rows.values()) / ranks)

    def _compile(self, device: torch.device, graph: tuple[str, ...], form: str, *, compare_speed: bool) -> str:
        """Compile layers, and compare them with the eager ones; the graph is kept unless it is not faster.

        Returns
        -------
        str
            The reason to take it, or not to.
        """
        settings = self.checked.pipeline.extract
        images = self._images(device, settings.images_per_batch)
        eager = self._tapped(device, graph, form)
        source = eager if form == WEIGHTS else self._tapped(device, graph, PLAIN)
        start = time.perf_counter()
        with self._arithmetic(device, form):
            compiled = CompiledTrunk(source, images)
            self.compile_s = time.perf_counter() - start
            some = images if compare_speed else images[:AGREEMENT_BATCH].contiguous(memory_format=torch.channels_last)
            refuse_disagreement(eager(some), compiled(images), settings.precision)
            eager_s, compiled_s = paired_seconds(eager, compiled, images) if compare_speed else (1.0, 0.0)
        faster = f"{eager_s / compiled_s:.2f} times as fast as the eager pass" if compare_speed else "the setting"
        if compare_speed and eager_s < MUCH_FASTER * compiled_s:
            return f"compiled, it is {faster}"
        self.compiled[graph] = compiled
        return f"{faster}; compiled in {self.compile_s:.0f} s"

    def _arithmetic(self, device: torch.device, form: str) -> AbstractContextManager[object]:
        """Return the context of a pass: autocast, unless the weights themselves have the precision."""
        if form == WEIGHTS:
            return torch.autocast(device.type, enabled=False)
        return autocast(device, self.checked.pipeline.extract.precision)

    def forward_pass(self, device: torch.device, missing: Sequence[str]) -> Forward:
        """Return what computes the missing layers in this process, each as the manifest says.

        Raises
        ------
        MismatchError
            If a layer was begun in a way that does not work here, or gives other features here.
        """
        manifest = self.features.manifest
        ways = {name: (graph_of(manifest, name) or (), form_of(manifest, name)) for name in missing}
        passes: list[Forward] = []
        for graph, form in dict.fromkeys(ways.values()):
            layers = graph or tuple(name for name in missing if ways[name] == (graph, form))
            try:
                passes.append(self._compiled(device, layers, form) if graph else self._tapped(device, layers, form))
            except (CannotCompileError, CannotRewriteError) as error:
                begun = "a compiled graph" if graph else f"a {form} trunk"
                raise MismatchError(
                    f"{self.features.path}: {', '.join(layers)}: begun with {begun}, and here {error}. What was "
                    f"committed is safe. Go on where that works, choose another --name, or replace the feature set "
                    f"with --overwrite."
                ) from error
        self.trunks.clear()
        return passes[0] if len(passes) == 1 else lambda images: _all_of(passes, images)

    def _compiled(self, device: torch.device, graph: tuple[str, ...], form: str) -> Forward:
        if graph not in self.compiled:
            self._compile(device, graph, form, compare_speed=False)
        compiled = self.compiled[graph]

        def run(images: Tensor) -> dict[str, Tensor]:
            with torch.autocast(device.type, enabled=False):
                return compiled(images)

        return run if form == WEIGHTS else compiled

    def _tapped(self, device: torch.device, layers: Sequence[str], form: str) -> Tapped:
        """Return the trunk in a form, tapped at layers."""
        key = tuple(layers), form
        if key not in self.trunks:
            plain = self.checked.tapped(device, self._specs(layers))
            precision, images = self.checked.pipeline.extract.precision, self._images(device, AGREEMENT_BATCH // 2)
            self.trunks[key] = in_form(plain, form, images, precision)
        return self.trunks[key]

    def _probe_size(self, device: torch.device) -> int:
        batch = self.checked.pipeline.extract.images_per_batch
        return min(batch, CPU_BATCH) if device.type == "cpu" else batch

    def _specs(self, layers: Sequence[str]) -> list[LayerSpec]:
        """Where layers are tapped: as the pipeline says, or else as the feature set records."""
        asked, stored = {spec.name: spec for spec in self.checked.pipeline.layers}, self.features.manifest.layers
        return [asked[name] if name in asked else spec_of(name, stored[name]) for name in layers]

    def _images(self, device: torch.device, num_images: int) -> Tensor:
        height, width = self.checked.image.shape[2:]
        return self.checked.transform.scale(probe_pixels(height, width, num_images), device)
