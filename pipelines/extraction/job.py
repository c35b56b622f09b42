"""An extraction that is ready to run: the checked pipeline, and the feature set that it writes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from featbench.extract.data.same_images import note_missing_digests, refuse_other_images
from featbench.extract.profile import Profile
from featbench.pipelines.config.pipeline import Pipeline
from featbench.pipelines.extraction.checking import CheckedPipeline, check
from featbench.pipelines.extraction.computing import Computation, undecided
from featbench.pipelines.extraction.devices import make_repeatable
from featbench.pipelines.extraction.same_model import NOT_THE_SAME, WAYS_ON, changed_layers, probes_of
from featbench.pipelines.extraction.signals import Interrupted, StopRequest
from featbench.store import FeatureSet, LayerInfo, MismatchError, add_layers, make_ready, open_or_create
from featbench.store.status import forget_statuses
from featbench.store.typing import Json


@dataclass(slots=True, kw_only=True)
class ExtractionJob:
    """All that a rank needs: the pipeline is checked, and the feature set exists."""

    checked: CheckedPipeline
    features: FeatureSet
    compared: Json
    """The features of fixed images, as the feature set recorded them when the model was last compared with them."""

    computation: Computation
    computed: Mapping[str, Json] = field(default_factory=dict)
    """What computes new layers, where that is not for this job to decide, as in the manifest's notes."""

    profiles: list[Profile] = field(default_factory=list)
    """Where the time of each rank went."""

    @property
    def pipeline(self) -> Pipeline:
        """The settings."""
        return self.checked.pipeline

    @property
    def layers(self) -> dict[str, LayerInfo]:
        """The layers to extract."""
        return self.checked.layers

    def refuse_another_model(self) -> None:
        """Compare the model with the feature set, unless it is still the one that it was compared with.

        To be called again under the lock: another run may have replaced the feature set.

        Raises
        ------
        MismatchError
            If the features in it were made by a model that gives others.
        """
        probes = probes_of(self.features.manifest)
        if probes != self.compared:
            changes = changed_layers(self.checked, self.features.manifest)
            if changes:
                raise MismatchError(
                    f"{self.features.path}: {NOT_THE_SAME}:\n  " + "\n  ".join(changes) + f"\n{WAYS_ON}"
                )
            self.compared = probes

    def make_ready(self) -> None:
        """Make the feature set ready for writing; under the lock, while no other rank runs."""
        self.refuse_another_model()
        self.features.reload()
        self.computation.refuse_conflicts()
        probes, still_open = self.checked.manifest.notes["probe"], undecided(self.layers, self.features.manifest)
        computed: dict[str, Json] = {name: self.computed.get(name, {}) for name in still_open}
        make_ready(self.features, self.checked.rows, self.layers, probes=probes, computed=computed)
        refuse_other_images(self.features, self.checked.sources)
        if self.missing():
            note_missing_digests(self.features)
        forget_statuses(self.features.journals)

    def decide(self, device: torch.device, *, ranks: int, stopping: StopRequest) -> None:
        """Decide and record what computes new layers; under the lock, while no other rank runs.

        Raises
        ------
        Interrupted
            If a signal came in the meantime; nothing is recorded then.
        """
        settings = self.pipeline.extract
        make_repeatable(device, settings.precision, settings.threads)
        decision = self.computation.decide(device, ranks=ranks, is_stopping=stopping)
        if decision is None:
            raise Interrupted(stopping.exit_code)
        if decision:
            add_layers(self.features, self.layers, computed=decision)

    def release_model(self) -> None:
        """Free the memory of the model and its graphs, before ranks start that load their own."""
        self.checked.release_model()
        self.computation.compiled.clear()
        self.computation.trunks.clear()

    def missing(self) -> tuple[str, ...]:
        """Return the layers that have pending chunks."""
        return self.features.pending(list(self.layers)).missing_layers


def prepare(pipeline: Pipeline, *, overwrite: bool = False) -> ExtractionJob:
    """Check everything that can be checked before a chunk is computed, and create the feature set.

    Raises
    ------
    MismatchError
        If there is a feature set of that name made with other settings, or with a model that gives other features.
    """
    return open_job(check(pipeline, overwrite=overwrite), overwrite=overwrite)


def open_job(
    checked: CheckedPipeline, *, overwrite: bool = False, computed: Mapping[str, Json] | None = None
) -> ExtractionJob:
    """Create or open the feature set of a checked pipeline; errors are those of `prepare`.

    With `computed`, new layers are computed as it says.
    """
    path = checked.pipeline.store / checked.pipeline.name
    features = open_or_create(path, checked.manifest, checked.rows, overwrite=overwrite, digests=True)
    job = ExtractionJob(
        checked=checked, features=features, compared={}, computed=computed or {},
        computation=Computation(checked=checked, features=features),
    )  # fmt: skip
    job.refuse_another_model()
    job.computation.refuse_conflicts()
    return job
