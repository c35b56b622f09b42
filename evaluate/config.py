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
"""faiss counts them from 1, in 32 bits."""


def _listed(value: Any) -> Any:
    """Let one number stand for a list of one; YAML's `true` is not the number 1."""
    values = value if isinstance(value, (list, tuple)) or value is None else (value,)
    if values and any(isinstance(each, bool) for each in values):
        raise ValueError("must be numbers")
    return values


def _one_or_more(value: Any) -> Any:
    """Let one name stand for a list of one, and separate names at commas."""
    return value.split(",") if isinstance(value, str) else value


class KnnConfig(Config):
    """Weighted k-nearest-neighbour classification."""

    protocol: Annotated[tuple[str, ...], BeforeValidator(_one_or_more)] = ("dino",)
    """Similarity and voting, with their usual k and temperature: see `bench protocols`. Or YAML files of own ones."""

    k: Annotated[tuple[int, ...] | None, BeforeValidator(_listed)] = None
    """Neighbours that vote; the protocol's own by default. One search at the largest serves them all."""

    temperature: Annotated[tuple[float, ...] | None, BeforeValidator(_listed)] = None
    """tau in the vote weight exp(similarity / tau); the protocol's own by default."""

    leave_one_out: bool = False
    """Classify train by train, each row by the others."""

    retrieval: bool = False
    """Also R-precision, MAP@R, precision@1, recall@k; searches as many neighbours as the largest class has rows."""

    duplicates: Annotated[float, Field(gt=-1, le=1)] | None = None
    """Cosine from which a query counts as a near-duplicate of its nearest neighbour; accuracies without them."""

    per_class: bool = False
    """Also the accuracy of each class, and what it is taken for; for the first k and temperature."""

    shots: Annotated[tuple[int | str, ...], BeforeValidator(_listed)] = ()
    """Also with so many images of each class (5), or such a part of them (10%); none by default."""

    tries: int = Field(default=5, gt=0, le=1000)
    """Draws of the few images; mean and standard deviation are reported."""

    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Of these draws."""

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

    iterations: int = Field(default=100, gt=0, le=100_000)
    """At most; stops when the objective no longer falls."""

    restarts: int = Field(default=10, gt=0, le=1000)
    """Initialisations; the best one on a sample is kept."""

    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Of sampling and initialisation."""

    @field_validator("clusters")
    @classmethod
    def _positive(cls, clusters: tuple[int | str, ...]) -> tuple[int | str, ...]:
        if any(isinstance(count, int) and count < 1 for count in clusters):
            raise ValueError("must be positive, or 'classes'")
        return tuple(dict.fromkeys(clusters))


class DeriveConfig(Config):
    """What is evaluated instead of the layers as they are stored; fitted on train."""

    concatenate: bool = False
    """All layers side by side, each row of each layer scaled to length 1 before."""

    center: bool = False
    """Subtract the mean."""

    pca: int | None = Field(default=None, gt=0)
    """Keep so many principal components."""

    whiten: bool = False
    """Scale every principal component to variance 1."""


class EvaluateConfig(Config):
    """Stage two."""

    derive: DeriveConfig = DeriveConfig()

    knn: KnnConfig = KnnConfig()
    kmeans: KmeansConfig = KmeansConfig()

    memory: str | None = None
    """What stage two may take for its arrays, such as 8GiB; by default half of what is free."""

    index: str | None = None
    """Search approximately, by faiss's index of this factory string: 'IVF4096,Flat:nprobe=16'. Exact by default."""

    device: Literal["auto", "cpu", "gpu", "faiss-cpu"] = "auto"
    """What searches: the CPU, faiss on a GPU, or faiss on the CPU; `auto` takes a GPU if faiss sees one."""

    precision: Literal["auto", "float32", "low"] = "auto"
    """What it searches with, to the same result; `low` is bfloat16 on the CPU, float16 on a GPU."""

    @field_validator("memory")
    @classmethod
    def _amount(cls, memory: str | None) -> str | None:
        if memory is not None:
            parse_memory(memory)
        return memory
