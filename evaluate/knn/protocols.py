"""kNN protocols: how each project defines its kNN accuracy, as a table.

A protocol fixes similarity, vote and definition of top-5; its k and temperature are the project's defaults. Its
preprocessing belongs to stage one, so an evaluation can only warn that the features were preprocessed differently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.neighbours.similarity import Similarity
from featbench.store import suggest

Vote = Literal["exponential", "inverse_distance", "uniform"]
Top5 = Literal["voted", "filled", "capped", "unordered", "none"]
Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnnProtocol:
    """The kNN protocol of one project."""

    similarity: Similarity = "cosine"
    """Cosine is the inner product of rows scaled to length 1."""

    vote: Vote = "exponential"
    """exp(s / T); 1 / (d + 1e-5) of a distance d; or one vote each."""

    k: tuple[int, ...]
    temperature: tuple[float, ...] = ()
    top5: Top5 = "filled"
    """Classes without a vote that fill the top 5: none (voted); by class number, up to five classes (filled), or to
    k if that is less (capped); in an unknown order (unordered). Or the project reports no top-5 (none)."""

    overflows: bool = False
    """Whether the project computes exp(s / T) in float32 as it is, though s / T can exceed 88.7; here it never does."""

    interpolation: Interpolation | None = None
    """Interpolation of the resize to a shorter side of 256, before a center crop of 224; None if not fixed."""

    source: str = ""

    def __post_init__(self) -> None:
        for name, known in (("similarity", Similarity), ("vote", Vote), ("top5", Top5)):
            if getattr(self, name) not in get_args(known):
                raise EvaluationError(
                    f"protocol: {name} must be one of {', '.join(get_args(known))}; got {getattr(self, name)!r}"
                )
        if not self.k or not all(isinstance(k, int) and k > 0 for k in self.k):
            raise EvaluationError(f"protocol: k must be a list of positive whole numbers; got {list(self.k)}")
        if (self.vote == "exponential") != bool(self.temperature) or not all(t > 0 for t in self.temperature):
            raise EvaluationError(
                "protocol: the exponential vote needs positive temperatures, and no other vote has one; "
                f"got vote {self.vote} with {list(self.temperature)}"
            )
        if self.vote == "inverse_distance" and self.similarity != "euclidean":
            raise EvaluationError(f"protocol: the inverse_distance vote needs euclidean; got {self.similarity}")


PROTOCOLS: Mapping[str, KnnProtocol] = {
    "dino": KnnProtocol(
        k=(10, 20, 100, 200), temperature=(0.07,), top5="capped", interpolation="bicubic",
        source="facebookresearch/dino, eval_knn.py",
    ),
    "dinov2": KnnProtocol(
        # torchmetrics takes the five by torch.topk, which lists equal scores (here 0) as its kernel comes to them.
        k=(10, 20, 100, 200), temperature=(0.07,), top5="unordered", interpolation="bicubic",
        source="facebookresearch/dinov2, eval/knn.py; its softmax(s / T) is the same ranking",
    ),
    "wu2018": KnnProtocol(
        k=(200,), temperature=(0.07,), interpolation="bilinear",
        source="Wu et al. 2018, sec. 3.4, arXiv:1805.01978; zhirongw/lemniscate.pytorch, test.py (T = 0.1 for CIFAR)",
    ),
    "vissl": KnnProtocol(
        similarity="inner_product", k=(200,), temperature=(0.1,), overflows=True,
        source="facebookresearch/vissl, knn_utils.py with L2_NORM_FEATS off, its default, but without the overflow",
    ),
    "moco": KnnProtocol(
        k=(200,), temperature=(0.1,), top5="none", source="facebookresearch/moco, the CIFAR-10 demonstration"
    ),
    "lightly": KnnProtocol(
        k=(200,), temperature=(0.1,), interpolation="bilinear",
        source="lightly-ai/lightly, knn_predict as used for ResNets (T = 0.07 for ViTs)",
    ),
    "solo": KnnProtocol(
        k=(20,), temperature=(0.07,), top5="capped", interpolation="bilinear",
        source="vturrisi/solo-learn, WeightedKNNClassifier with distance_fx=cosine",
    ),
    "solo_euclidean": KnnProtocol(
        similarity="euclidean", vote="inverse_distance", k=(20,), top5="capped", interpolation="bilinear",
        source="vturrisi/solo-learn, WeightedKNNClassifier with distance_fx=euclidean",
    ),
    "mmselfsup": KnnProtocol(
        k=(10, 20, 100, 200), temperature=(0.07,), top5="capped", interpolation="bilinear",
        source="open-mmlab/mmselfsup, knn_classifier; it resizes with OpenCV",
    ),
    "scan": KnnProtocol(
        k=(100,), temperature=(0.1,), top5="none",
        source="wvangansbeke/Unsupervised-Classification, the temperature of its SimCLR loss",
    ),
    "majority": KnnProtocol(k=(1, 5, 20), vote="uniform", top5="voted", source="Cover and Hart 1967: one vote each"),
}  # fmt: skip


def find_protocol(name: str, own: Mapping[str, KnnProtocol] | None = None) -> KnnProtocol:
    """Look up a protocol.

    Raises
    ------
    EvaluationError
        If there is no protocol of that name.
    """
    known = {**PROTOCOLS, **(own or {})}
    if name not in known:
        raise EvaluationError(f"unknown protocol {name!r}. {suggest(name, known)}")
    return known[name]


def make_protocol(name: str, settings: Mapping[str, Any]) -> KnnProtocol:
    """Make a protocol from the settings of a file; `like` names a protocol to start from.

    Raises
    ------
    EvaluationError
        If a setting is unknown or wrong.

    Examples
    --------
    >>> make_protocol("mine", {"like": "dino", "k": 5}).k
    (5,)
    """
    names = [field.name for field in fields(KnnProtocol)]
    unknown = [key for key in settings if key not in (*names, "like")]
    if unknown:
        raise EvaluationError(
            f"protocol {name}: unknown setting {unknown[0]!r}. {suggest(unknown[0], [*names, 'like'])}"
        )
    base = asdict(find_protocol(str(settings["like"]))) | {"source": ""} if "like" in settings else {}
    given = {key: _as_tuple(value) if key in ("k", "temperature") else value for key, value in settings.items()}
    given.pop("like", None)
    if "k" not in base | given:
        raise EvaluationError(f"protocol {name}: needs k, or `like` with the name of another protocol")
    try:
        return KnnProtocol(**(base | given))
    except EvaluationError as error:
        raise EvaluationError(str(error).replace("protocol:", f"protocol {name}:", 1)) from None


def difference(first: KnnProtocol, second: KnnProtocol) -> list[tuple[str, Any, Any]]:
    """Settings in which two protocols differ: name, value of the first, value of the second."""
    ours, theirs = asdict(first), asdict(second)
    return [(name, ours[name], theirs[name]) for name in ours if name != "source" and ours[name] != theirs[name]]


def preprocessing_differs(protocol: KnnProtocol, transform: Mapping[str, Any] | None) -> str | None:
    """Describe how the transform of an extraction differs from the protocol's; None if it does not, or is unknown."""
    if protocol.interpolation is None or not transform:
        return None
    usual = {"resize": 256, "crop": 224, "interpolation": protocol.interpolation}
    other = [
        f"{key} {transform[key]}, not {value}" for key, value in usual.items() if transform.get(key, value) != value
    ]
    return "; ".join(other) or None


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
