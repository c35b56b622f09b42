"""`featbench.knn`: weighted kNN classification of arrays, tensors or stored features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from featbench._arrays import ArrayError, whole_numbers
from featbench._errors import naming_arguments
from featbench._features import Features, Layers, MemoryFeatures
from featbench.evaluate.features.layers import EvalLayer
from featbench.evaluate.knn.classification import Find, KnnQuestion, classify
from featbench.evaluate.knn.protocols import KnnProtocol
from featbench.evaluate.memory import free_memory, parse_memory
from featbench.evaluate.neighbours.cache import SearchResult
from featbench.evaluate.neighbours.planning import Resources
from featbench.evaluate.results import KnnResult, Record, Result, records_of
from featbench.pipelines.config.protocols import find_protocols
from featbench.store.typing import Array, Bools, Doubles, Ints

if TYPE_CHECKING:
    import pandas as pd

Protocols = str | Sequence[str] | Mapping[str, KnnProtocol]


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighbourLists:
    """For each query its nearest rows of train, the nearest first."""

    rows: Ints
    """Shape (Q, K)."""

    similarities: Doubles
    """Shape (Q, K): cosine, inner product, or minus the Euclidean distance."""

    queries: Ints
    """Row of each query in its own split, shape (Q,): rows without a label are left out, if any row has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """Whether each query is classified correctly."""

    queries: Ints
    """Row of each query in its split, shape (Q,)."""

    is_right_Q: Bools
    classes: Sequence[str]
    """Class of each query, by name."""

    num_rows: int
    """Rows of the split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnnResults(Sequence[KnnResult]):
    """What `knn` returns: a sequence of results, one for each layer, protocol, temperature and k.

    Its attributes speak of the `best` of them: the only one, if there is one layer, protocol, temperature and k.
    """

    results: tuple[Result, ...]
    """All results, those of classes and of retrieval among them."""

    _lists: Mapping[tuple[str, str], NeighbourLists] = field(repr=False)
    """By layer and similarity."""

    _features: Features = field(repr=False)

    @property
    def best(self) -> KnnResult | None:
        """The result with the highest top-1, the first of equals; None if there are no labels."""
        return max(self._classifications, key=lambda result: result.top1, default=None)

    @property
    def top1(self) -> float | None:
        """Fraction of the queries that are classified correctly."""
        return None if self.best is None else self.best.top1

    @property
    def top5(self) -> float | None:
        """Fraction of the queries whose class is among the five with most votes."""
        return None if self.best is None else self.best.accuracy.top5.value

    @property
    def predictions(self) -> Array | None:
        """Predicted class of each query, shape (Q,), as the labels were given: numbers or names."""
        if self.best is None or self.best.predictions is None:
            return None
        return self._features.predicted(self.best.predictions)

    @property
    def neighbours(self) -> NeighbourLists:
        """Neighbours of each query, as many as the largest k."""
        first: Any = self.best or self.results[0]
        return self._lists[first.layer.layer, first.similarity]

    @property
    def records(self) -> list[Record]:
        """All results as flat dicts with the same keys, those of `bench evaluate --json`."""
        return records_of(self.results)

    def to_pandas(self) -> pd.DataFrame:
        """Return the records as a data frame; needs pandas."""
        return data_frame(self.records)

    def outcomes(self) -> Outcomes:
        """Return which queries the `best` result classifies correctly.

        Raises
        ------
        ArrayError
            If there are no labels.
        """
        if self.best is None or self.best.predictions is None:
            raise ArrayError(f"{self._features.name}: there are no labels, so no query is right or wrong")
        train, val, names = self._features.matched()
        queries = train if self.best.leave_one_out else val
        return Outcomes(
            queries=queries.rows, is_right_Q=self.best.predictions == queries.labels,
            classes=[names[label] for label in queries.labels], num_rows=self._features.num_rows(queries.split),
        )  # fmt: skip

    @overload
    def __getitem__(self, index: int) -> KnnResult: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[KnnResult]: ...
    def __getitem__(self, index: int | slice) -> KnnResult | Sequence[KnnResult]:
        return self._classifications[index]

    def __len__(self) -> int:
        return len(self._classifications)

    def __iter__(self) -> Iterator[KnnResult]:
        return iter(self._classifications)

    def __repr__(self) -> str:
        lines = [f"  {_line(result)}" for result in self]
        return "\n".join([f"KnnResults of {self._features.name}:", *lines]) if lines else "KnnResults without labels"

    @property
    def _classifications(self) -> tuple[KnnResult, ...]:
        return tuple(result for result in self.results if isinstance(result, KnnResult))


@naming_arguments
def knn(
    train: object,
    train_labels: object = None,
    val: object = None,
    val_labels: object = None,
    *,
    layers: Layers = None,
    k: int | Sequence[int] | None = None,
    protocol: Protocols = "dino",
    temperature: float | Sequence[float] | None = None,
    leave_one_out: bool = False,
    duplicates: float | None = None,
    retrieval: bool = False,
    per_class: bool = False,
    device: str = "auto",
    precision: str = "auto",
    memory: int | str | None = None,
    keep: bool = False,
) -> KnnResults:
    """Classify each row of val by the weighted votes of its nearest rows in train.

    The search is exact. Numbers are those of `bench evaluate` on the same features.

    Parameters
    ----------
    train : array or tensor of shape (N, ...), mapping of str to these, or Features
        Features of the database; several layers by name; or a feature set that was opened or extracted, which has
        labels and val itself. Arrays are compared as float32, tensors on the CPU. Nothing is written.
    train_labels : sequence of int or str, shape (N,) or (N, 1), optional
        -1, None, NaN and "" are rows without a label, which are left out. Without any label, neighbours are found, and
        no accuracy is given.
    val, val_labels
        The queries likewise. Classes are matched by name, so numbers mean the same in both splits.
    layers : str or sequence of str, optional
        All by default.
    k : int or sequence of int, optional
        Neighbours that vote; the protocol's by default. One search serves all.
    protocol : str, sequence of str, or mapping of str to KnnProtocol
        Similarity and voting: a name of `bench protocols`, or the path of a YAML file with one.
    temperature : float or sequence of float, optional
        Of the vote exp(similarity / temperature); the protocol's by default.
    leave_one_out : bool
        Classify each row of train by the others; val may be left out.
    duplicates : float, optional
        Also top-1 without the queries whose nearest neighbour has at least this cosine.
    retrieval, per_class : bool
        Also results of retrieval, and of each class: in `results` and `records`.
    device, precision : str
        What searches, as `--search-device` and `--search-precision`; they change no result.
    memory : int or str, optional
        Bytes, or a text such as "8GiB", that the search may take; half of what is free by default.
    keep : bool
        Keep the neighbours of a stored feature set beside it, as `bench evaluate` does. By default nothing is
        written; what was kept before is used.

    Returns
    -------
    KnnResults
        With `top1`, `predictions`, `neighbours`, `records` and `to_pandas()`.

    Raises
    ------
    BenchError
        If shapes, lengths or labels do not fit, a value is not finite, or a layer, a protocol or a k can't be; these
        are ValueErrors, too.

    Examples
    --------
    >>> train, val = [[0.0, 1.0], [1.0, 0.0], [0.9, 0.1]], [[0.1, 1.0], [1.0, 0.2]]
    >>> result = knn(train, ["cat", "dog", "dog"], val, ["cat", "dog"], k=1)
    >>> result.top1, result.predictions.tolist()
    (1.0, ['cat', 'dog'])
    """
    if duplicates is not None and not -1 < duplicates <= 1:
        raise ArrayError(f"duplicates must be a cosine, in (-1, 1]; got {duplicates!r}")
    features = as_features(train, train_labels, val, val_labels, leave_one_out=leave_one_out)
    asked = KnnQuestion(
        protocols=protocols_of(protocol),
        k=None if k is None else whole_numbers(k, what="k"),
        temperature=positive(temperature),
        leave_one_out=leave_one_out,
        retrieval=retrieval,
        duplicates=duplicates,
        per_class=per_class,
        predictions=True,
    )
    resources = resources_of(device, precision, memory)
    lists: dict[tuple[str, str], NeighbourLists] = {}
    find = _noting(features.finder(resources, keep=keep), lists)
    results = classify(features.views(layers), *features.matched(), asked, find=find, name=features.name)
    return KnnResults(results=tuple(results), _lists=lists, _features=features)


def as_features(
    train: object, train_labels: object, val: object, val_labels: object, *, leave_one_out: bool = False
) -> Features:
    """Return features that were given as they are, and arrays as features.

    Raises
    ------
    ArrayError
        If something is missing, or too much.
    """
    if isinstance(train, Features):
        if any(each is not None for each in (train_labels, val, val_labels)):
            raise ArrayError("features that were opened or extracted have labels and val: give no others with them")
        return train
    if val is None and not leave_one_out:
        raise ArrayError("val is missing: give features of val, or leave_one_out=True to classify train by itself")
    if val is None:
        val, val_labels = train, train_labels
    return MemoryFeatures(train, train_labels, val, val_labels)


def bytes_of(memory: int | str | None) -> int:
    """Return an amount of memory in bytes; half of what is free for None."""
    if memory is None:
        return free_memory() // 2
    if isinstance(memory, str):
        return parse_memory(memory)
    (number,) = whole_numbers(memory, what="memory, in bytes,")
    if number <= 0:
        raise ArrayError(f"memory must be positive, or a text such as '8GiB'; got {memory!r}")
    return number


def data_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Return records as a data frame.

    Raises
    ------
    ImportError
        If pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError("to_pandas() needs pandas: pip install pandas. `records` has the same as dicts") from error
    return pd.DataFrame(records)


def _noting(find: Find, lists: dict[tuple[str, str], NeighbourLists]) -> Find:
    """Note the lists that are found."""

    def find_and_note(view: EvalLayer, **asked: Any) -> SearchResult:
        found = find(view, **asked)
        neighbours, k = found.neighbours, asked["k"]
        lists[view.name, asked["similarity"]] = NeighbourLists(
            rows=neighbours.rows_QK[:, :k], similarities=neighbours.similarities_QK[:, :k], queries=neighbours.queries
        )
        return found

    return find_and_note


def protocols_of(protocol: Protocols) -> Mapping[str, KnnProtocol]:
    """Look protocols up by name, or take those that are given.

    Raises
    ------
    ArrayError
        If it is neither.
    """
    if isinstance(protocol, Mapping) and protocol and all(isinstance(each, KnnProtocol) for each in protocol.values()):
        return dict(protocol)
    names = protocol.split(",") if isinstance(protocol, str) else protocol
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise ArrayError(f"protocol must be a name, several, or a mapping of names to KnnProtocol; got {protocol!r}")
    return find_protocols(names)


def resources_of(device: str, precision: str, memory: int | str | None) -> Resources:
    """Check what the search may use.

    Raises
    ------
    ArrayError
        If a setting can't be.
    """
    if str(device).split(":")[0] not in ("auto", "cpu", "gpu", "faiss-cpu"):
        raise ArrayError(f"device must be auto, cpu, gpu, gpu:1 (the second GPU) or faiss-cpu; got {device!r}")
    if precision not in ("auto", "float32", "low"):
        raise ArrayError(f"precision must be auto, float32 or low; got {precision!r}")
    return Resources(memory=bytes_of(memory), device=device, precision=precision)


def positive(values: float | Sequence[float] | None) -> list[float] | None:
    """Return temperatures as a list of different positive numbers.

    Raises
    ------
    ArrayError
        If one is not.
    """
    if values is None:
        return None
    try:
        numbers = [float(each) for each in np.atleast_1d(np.asarray(values)).tolist()]
    except (TypeError, ValueError):
        numbers = []
    if not numbers or not all(0 < number < float("inf") for number in numbers):
        raise ArrayError(f"temperature must be a positive number or several; got {values!r}")
    return list(dict.fromkeys(numbers))


def _line(result: KnnResult) -> str:
    top1, setting = result.accuracy.top1, [result.layer.layer, result.protocol, f"k={result.k}"]
    if result.temperature is not None:
        setting.append(f"T={result.temperature:g}")
    return f"{', '.join(setting)}: top-1 {100 * top1.value:.2f} % [{100 * top1.low:.1f}, {100 * top1.high:.1f}]"
