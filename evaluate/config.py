"""Settings of stage two."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from evaluate.protocols import PROTOCOLS
from store import nearest
from store.config import Config


def _listed(value: Any) -> Any:
    """Let one number stand for a list of one; YAML's `true` is not the number 1."""
    values = value if isinstance(value, (list, tuple)) or value is None else (value,)
    if values and any(isinstance(each, bool) for each in values):
        raise ValueError("must be numbers")
    return values


class KnnConfig(Config):
    """Weighted k-nearest-neighbour classification."""

    protocol: str = "dino"
    """Similarity and voting, with their usual k and temperature; see `evaluate.protocols`."""

    k: Annotated[tuple[int, ...] | None, BeforeValidator(_listed)] = None
    """Neighbours that vote; the protocol's own by default. One search at the largest serves them all."""

    temperature: Annotated[tuple[float, ...] | None, BeforeValidator(_listed)] = None
    """tau in the vote weight exp(similarity / tau); the protocol's own by default."""

    @field_validator("protocol")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in PROTOCOLS:
            raise ValueError(f"unknown protocol {name!r}. {nearest(name, PROTOCOLS)}")
        return name

    @field_validator("k", "temperature")
    @classmethod
    def _positive(cls, values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if values is not None and (not values or not all(0 < value < float("inf") for value in values)):
            raise ValueError("must be positive")
        return None if values is None else tuple(dict.fromkeys(values))


class KmeansConfig(Config):
    """Clustering of the train split, measured on both splits."""

    clusters: Annotated[tuple[int | Literal["classes"], ...], BeforeValidator(_listed)] = ()
    """Numbers of clusters; `classes` is the number of classes; none by default."""

    normalize: bool = True
    """Scale each row to length 1 first, as VISSL's ClusterFit does."""

    iterations: int = Field(default=100, gt=0)
    """At most; stops when the objective no longer falls."""

    restarts: int = Field(default=10, gt=0)
    """Initialisations; the best one on a sample is kept."""

    seed: int = 0
    """Of sampling and initialisation."""

    @field_validator("clusters")
    @classmethod
    def _positive(cls, clusters: tuple[int | str, ...]) -> tuple[int | str, ...]:
        if any(isinstance(count, int) and count < 1 for count in clusters):
            raise ValueError("must be positive, or 'classes'")
        return tuple(dict.fromkeys(clusters))


class EvaluateConfig(Config):
    """Stage two."""

    knn: KnnConfig = KnnConfig()
    kmeans: KmeansConfig = KmeansConfig()

    block_mib: int = Field(default=512, gt=0)
    """Database rows held in memory at once, in MiB of float32; two such blocks exist at a time."""

    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where faiss searches; `auto` takes a GPU if faiss sees one."""
