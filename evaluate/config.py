"""Settings of stage two."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

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


class KnnConfig(Config):
    """Weighted k-nearest-neighbour classification."""

    protocol: Annotated[tuple[str, ...], BeforeValidator(_one_or_more)] = ("dino",)
    """Similarity and vote, with their usual k and temperature; see `bench protocols`. Or a YAML file of your own."""

    k: Annotated[tuple[int, ...] | None, BeforeValidator(_listed)] = None
    """Neighbours that vote; the protocol's by default. One search at the largest k serves all of them."""

    temperature: Annotated[tuple[float, ...] | None, BeforeValidator(_listed)] = None
    """tau in the vote weight exp(similarity / tau); the protocol's by default."""

    leave_one_out: bool = False
    """Leave-one-out on train: classify each row by its neighbours among the other rows."""

    retrieval: bool = False
    """Also report R-precision, MAP@R, precision@1 and recall@k; the lists are as long as the largest class."""

    duplicates: Annotated[float, Field(gt=-1, le=1)] | None = None
    """Also report accuracy without queries whose nearest train cosine is at least this (near-duplicates)."""

    per_class: bool = False
    """Also report each class's accuracy, and the class it is most confused with, at the first k and temperature."""

    shots: Annotated[tuple[int | str, ...], BeforeValidator(_listed)] = ()
    """Also classify by this many images of each class (5), or this fraction of them (10%); none by default."""

    tries: int = Field(default=5, gt=0, le=1000)
    """Random draws of these images; the mean and the standard deviation over the draws are reported."""

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


class KmeansConfig(Config):
    """Clustering of the train split, measured on both splits."""

    clusters: Annotated[tuple[int | Literal["classes"], ...], BeforeValidator(_listed)] = ()
    """Numbers of clusters; `classes` is the number of classes; none by default."""

    normalize: bool = True
    """Scale each row to length 1 first, as VISSL's ClusterFit does."""

    spherical: bool = False
    """Also scale each centroid to length 1 after every iteration (spherical k-means)."""

    init: str = "k-means++"
    """How to choose the first centroids: `k-means++`, `random` (rows of train), or a .npy file of K x D numbers."""

    restarts: int = Field(default=10, gt=0, le=1000)
    """Initializations; the best one on a sample is kept."""

    iterations: int = Field(default=100, gt=0, le=100_000)
    """Most iterations."""

    tolerance: float = Field(default=1e-6, ge=0, lt=1)
    """Stop when an iteration lowers the objective by less than this fraction of it."""

    mini_batch: int | None = Field(default=None, gt=0)
    """Update the centroids after each batch of this many rows, for very large sets; all rows at once by default."""

    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of the sample and of the initializations."""

    seeds: int = Field(default=1, gt=0, le=1000)
    """Whole runs, with consecutive seeds; mean and standard deviation are reported, and the best run is kept."""

    ami: bool = True
    """Report adjusted mutual information, which takes long for many clusters and classes."""

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
    """Concatenate all layers, each row of each layer scaled to length 1 first."""

    center: bool = False
    """Subtract the mean."""

    pca: int | None = Field(default=None, gt=0)
    """Keep this many principal components."""

    whiten: bool = False
    """Scale every principal component to variance 1."""


class EvaluateConfig(Config):
    """Stage two."""

    derive: DeriveConfig = DeriveConfig()

    knn: KnnConfig = KnnConfig()
    kmeans: KmeansConfig = KmeansConfig()

    memory: str | None = None
    """Memory budget of the arrays, such as 8GiB; half of the free memory by default."""

    index: str | None = None
    """Search approximately with a faiss index, by its factory string: 'IVF4096,Flat:nprobe=16'. Exact by default."""

    device: Literal["auto", "cpu", "gpu", "faiss-cpu"] = "auto"
    """Where to search: on the CPU, by faiss on a GPU, or by faiss on the CPU; `auto` uses a GPU if faiss sees one."""

    precision: Literal["auto", "float32", "low"] = "auto"
    """Precision of the first pass; changes no result. `low` is bfloat16 on the CPU, float16 on a GPU."""

    @field_validator("memory")
    @classmethod
    def _amount(cls, memory: str | None) -> str | None:
        if memory is not None:
            parse_memory(memory)
        return memory
