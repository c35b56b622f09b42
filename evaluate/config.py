"""Settings of stage two."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from featbench.evaluate.clustering.settings import KmeansSettings
from featbench.evaluate.knn.protocols import PROTOCOLS
from featbench.evaluate.knn.shots import parse_shots
from featbench.evaluate.memory import parse_memory
from featbench.store import suggest
from featbench.store.config import Config

MAX_SEED = 2**31 - 2
"""Largest seed: faiss takes signed 32-bit integers, and gets the seed plus 1."""


INITS = ("k-means++", "random")
"""Ways to choose the first centroids."""


def _listed(value: Any) -> Any:
    """Accept a single number for a list; YAML's `true` is not the number 1."""
    values = value if isinstance(value, (list, tuple)) or value is None else (value,)
    if values and any(isinstance(each, bool) for each in values):
        raise ValueError("must be numbers")
    return values


def _one_or_more(value: Any) -> Any:
    """Accept a single name for a list, and split names at commas."""
    return value.split(",") if isinstance(value, str) else value


class BenchmarkRow(Config):
    """The setting that gives a published benchmark's number."""

    name: str
    """What to call the benchmark."""

    protocol: str
    k: int = Field(gt=0)
    temperature: float = Field(gt=0)


class KnnConfig(Config):
    """Weighted k-nearest-neighbour classification."""

    protocol: Annotated[tuple[str, ...], BeforeValidator(_one_or_more)] = ("dino",)
    """kNN protocols (`bench protocols` lists them), or YAML files of your own."""

    k: Annotated[tuple[int, ...] | None, BeforeValidator(_listed)] = None
    """Numbers of neighbours that vote, such as 10, 20 and 200; the protocol's by default."""

    temperature: Annotated[tuple[float, ...] | None, BeforeValidator(_listed)] = None
    """Temperatures T of the vote exp(similarity / T), such as 0.07; the protocol's by default."""

    benchmark: BenchmarkRow | None = None
    """The protocol, k and temperature whose rows are marked as a benchmark's number."""

    leave_one_out: bool = False
    """Classify each train image by the other train images."""

    select: Literal["leave-one-out"] | None = None
    """Choose layer, protocol, k and temperature on train, and report it on val; by default report all on val."""

    queries: dict[str, str] | None = None
    """Also classify other queries, such as ImageNet-V2: NAME=SET, the val split of a feature set of the same model
    (SET:train is its train split), or a folder or list of images, which are extracted by that model and kept."""

    on_error: Literal["stop", "skip"] | None = None
    """What to do about an image of other queries that can't be read, as for the bank by default; skipped ones do not
    count."""

    bank: Literal["all", "subset"] = "all"
    """Rows that vote on other queries: all of train, or those of the queries' classes."""

    subset: dict[str, str] | None = None
    """Also classify val by the rows of train that a file lists, NAME=FILE, such as SimCLR's 1% of ImageNet."""

    any_of: dict[str, str] | None = None
    """Also top-1 by labels of val of which any is right, NAME=FILE.json, such as ReaL's."""

    ood: dict[str, str] | None = None
    """Also tell val from images from elsewhere, NAME=SET or images likewise, by the distance to the k-th neighbour."""

    retrieval: bool = False
    """Also report R-precision, MAP@R, precision@1 and recall@k."""

    duplicates: Annotated[float, Field(gt=-1, le=1)] | None = None
    """Also report top-1 without val images whose nearest train image has at least this cosine, such as 0.99."""

    as_published: bool = False
    """Count votes in VISSL's own arithmetic, which overflows; for protocol vissl, to compare with its numbers."""

    per_class: bool = False
    """Also report the accuracy of each class, and the class it is most confused with."""

    shots: Annotated[tuple[int | str, ...], BeforeValidator(_listed)] = ()
    """Also classify by few labels: this many images of each class (5), or this fraction of them (10%)."""

    tries: int = Field(default=5, gt=0, le=1000)
    """Random draws of the few labels; reports mean and standard deviation."""

    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of these draws."""

    @field_validator("protocol")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in PROTOCOLS and not name.endswith((".yaml", ".yml")):
                raise ValueError(f"unknown protocol {name!r}. {suggest(name, PROTOCOLS)}")
        return tuple(dict.fromkeys(names))

    @field_validator("k", "temperature")
    @classmethod
    def _positive(cls, values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if values is not None and (not values or not all(0 < value < float("inf") for value in values)):
            raise ValueError("must be positive")
        return None if values is None else tuple(dict.fromkeys(values))

    @field_validator("shots")
    @classmethod
    def _readable(cls, shots: tuple[int | str, ...]) -> tuple[int | str, ...]:
        for each in shots:
            parse_shots(each)
        return tuple(dict.fromkeys(shots))


class DiagnosisConfig(Config):
    """What an accuracy does not say."""

    diagnose: bool = False
    """Also report calibration, hubs, intrinsic dimension and spectrum, as `bench diagnose` does."""

    group_by: Path | None = None
    """Also accuracies by group: a CSV file with a column `path` and columns of groups, such as camera or patient."""

    suspects: Path | None = None
    """Write likely label errors, near-duplicates and outliers to this CSV file; also report accuracy without them."""

    share: float = Field(default=0.01, gt=0, le=1)
    """Most rows listed as label errors, and as outliers, as a fraction of all rows."""

    @property
    def is_asked(self) -> bool:
        """Whether anything of it is."""
        return self.diagnose or self.group_by is not None or self.suspects is not None


class KmeansConfig(Config):
    """Clustering of the train split, measured on both splits."""

    clusters: Annotated[tuple[int | Literal["classes"], ...], BeforeValidator(_listed)] = ()
    """Also k-means with these numbers of clusters, such as 100; `classes` is the number of classes."""

    normalize: bool = True
    """Scale each row to length 1 first, as VISSL's ClusterFit does."""

    spherical: bool = False
    """Scale the centroids, as well as the rows, to length 1 after every iteration (spherical k-means)."""

    init: str = "k-means++"
    """First centroids: `k-means++`, `random` (rows of train), or a .npy file of K x D numbers."""

    restarts: Annotated[int, Field(gt=0, le=1000)] | None = None
    """Starts on a sample of the rows, of which the best goes on; up to 10 by default."""

    iterations: int = Field(default=100, gt=0, le=100_000)
    """Most iterations."""

    tolerance: float = Field(default=1e-6, ge=0, lt=1)
    """Stop when an iteration lowers the objective by less than this fraction of it."""

    mini_batch: int | None = Field(default=None, gt=0)
    """Update the centroids after each batch of this many random rows, for very large sets; by default after all."""

    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of the sample and of the initializations."""

    seeds: int = Field(default=1, gt=0, le=1000)
    """Runs of k-means with consecutive seeds; reports mean and standard deviation, and keeps the best."""

    ami: bool = True
    """Report adjusted mutual information (AMI), which is slow for many clusters and classes."""

    def settings(self) -> KmeansSettings:
        """What changes the clusters, besides their number."""
        names = ("normalize", "spherical", "init", "restarts", "iterations", "tolerance", "mini_batch", "seed")
        return KmeansSettings(**{name: getattr(self, name) for name in names})

    @field_validator("clusters")
    @classmethod
    def _positive(cls, clusters: tuple[int | str, ...]) -> tuple[int | str, ...]:
        if any(isinstance(count, int) and count < 1 for count in clusters):
            raise ValueError("must be positive, or 'classes'")
        return tuple(dict.fromkeys(clusters))

    @field_validator("init")
    @classmethod
    def _known(cls, init: str) -> str:
        if init not in INITS and not init.endswith(".npy"):
            raise ValueError(f"must be {', '.join(INITS)} or a .npy file; got {init!r}. {suggest(init, INITS)}")
        return init


class DeriveConfig(Config):
    """Transforms of the stored layers before they are evaluated; fitted on train."""

    concatenate: bool = False
    """Evaluate all layers side by side, as one; each row of each is scaled to length 1 first."""

    center: bool = False
    """Subtract the mean of train."""

    pca: int | None = Field(default=None, gt=0)
    """Keep this many principal components of train."""

    whiten: bool = False
    """Scale every principal component to variance 1."""


class EvaluateConfig(Config):
    """Stage two."""

    derive: DeriveConfig = DeriveConfig()

    knn: KnnConfig = KnnConfig()
    kmeans: KmeansConfig = KmeansConfig()
    diagnosis: DiagnosisConfig = DiagnosisConfig()

    memory: str | None = None
    """Memory for stage two, such as 8GiB; half of what is free by default."""

    index: str | None = None
    """Search approximately, by a faiss index such as IVF4096,Flat:nprobe=16; exactly by default."""

    device: Literal["auto", "cpu", "gpu", "faiss-cpu"] = "auto"
    """What searches: the CPU, faiss on a GPU, or faiss on the CPU; `auto` uses a GPU if faiss sees one."""

    precision: Literal["auto", "float32", "low"] = "auto"
    """Precision of the first pass, which changes no result; `low` is bfloat16 on the CPU, float16 on a GPU."""

    @field_validator("memory")
    @classmethod
    def _amount(cls, memory: str | None) -> str | None:
        if memory is not None:
            parse_memory(memory)
        return memory
