"""Parsing and checks of `--index`: a faiss factory string with search parameters.

faiss does not check its input: `IVF99999999` allocates gigabytes, and numbers that do not fit its types wrap around.
So numbers are checked against the database before faiss sees them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import faiss

from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.memory import in_words
from featbench.evaluate.neighbours.similarity import Similarity

_ADVICE = "Try IVF4096,Flat:nprobe=16 or HNSW32, or leave --index out: the search is exact then."

_FAILURES = (RuntimeError, MemoryError, ValueError, TypeError, AssertionError, OverflowError)
"""Errors that faiss's Python layer raises."""

_GRAPH = re.compile(r"HNSW|NSG|NNDescent")
"""Graph indexes: the links of an insertion depend on earlier ones, so on the order of threads."""

_IN_ONE_PIECE = re.compile(r"(^|,)(NSG|NNDescent)")
"""Graph indexes that are built from all rows at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSpec:
    """A faiss index, by its factory string and search parameters."""

    factory: str
    parameters: str

    def __str__(self) -> str:
        return f"{self.factory}:{self.parameters}" if self.parameters else self.factory

    @property
    def is_graph(self) -> bool:
        """Whether it must be built by one thread to be reproducible."""
        return bool(_GRAPH.search(self.factory))

    @property
    def in_one_piece(self) -> bool:
        """Whether all rows must be added at once."""
        return bool(_IN_ONE_PIECE.search(self.factory))

    @classmethod
    def parse(cls, text: str) -> IndexSpec:
        """Parse `IVF4096,Flat` or `IVF4096,Flat:nprobe=16`.

        Raises
        ------
        EvaluationError
            If the text can't be such a string.

        Examples
        --------
        >>> IndexSpec.parse("IVF64,Flat:nprobe=8")
        IndexSpec(factory='IVF64,Flat', parameters='nprobe=8')
        """
        factory, _, parameters = text.partition(":")
        if not re.fullmatch(r"[\x21-\x7e]+", factory) or len(text) > 200:
            raise EvaluationError(f"--index {text[:200]!r}: must be a factory string of faiss's. {_ADVICE}")
        spec = cls(factory=factory, parameters=parameters)
        for setting in parameters.split(",") if parameters else ():
            if not re.fullmatch(r"(?!verbose)[A-Za-z_]+=(\d+(\.\d*)?|\.\d+)([eE]\+?\d{1,3})?", setting):
                raise EvaluationError(f"--index {spec}: {setting!r} must be a name and a number, such as nprobe=16")
        return spec

    def refuse_absurd(self, *, num_rows: int, num_training: int, dim: int, k: int, memory: int) -> None:
        """Refuse numbers that make no sense for this database.

        Parameters
        ----------
        num_rows, dim : int
            Of the database.
        num_training : int
            Rows that the index is trained on.
        k : int
            Neighbours to find.
        memory : int
            Bytes that the index may use.

        Raises
        ------
        EvaluationError
            Naming the number and its largest value.
        """
        for kind, digits in re.findall(r"([A-Za-z_]*)(\d+)", self.factory):
            number = int(digits[:19])
            if kind == "IVF":
                self._refuse_above(f"{kind}{digits}", number, num_training, "the rows that it is trained on")
                needed = number * (4 * dim + 64)
            elif kind == "x":  # a code of b bits has 2**b entries, each trained
                self._refuse_above(f"x{digits}", number, max(1, num_training.bit_length() - 1),
                                   f"bits that {num_training:,} rows can train")  # fmt: skip
                needed = 0
            elif _GRAPH.search(kind):  # over all rows, or over the centroids as in IVF4096_HNSW32
                needed = (num_training if kind.startswith("_") else num_rows) * 8 * number
            elif kind == "Pad":
                needed = num_rows * 4 * number
            else:
                needed = 4 * dim * number
            if needed > memory:
                raise EvaluationError(
                    f"--index {self}: {kind}{digits} alone would take {in_words(needed)} of memory; "
                    f"{in_words(memory)} are left for the index. {_ADVICE}"
                )
        for setting in self.parameters.split(",") if self.parameters else ():
            name, _, value = setting.partition("=")
            largest = num_rows // k if "k_factor" in name else num_rows
            self._refuse_above(setting, float(value), largest, "no more than the rows of the database can use")

    def _refuse_above(self, what: str, number: float, largest: int, why: str) -> None:
        if number > largest:
            raise EvaluationError(
                f"--index {self}: {what} is too large: at most {largest:,}, {why}. "
                f"Take a smaller one, or leave --index out: the search is exact then."
            )

    def make(self, dim: int, kind: Similarity) -> Any:
        """Make an empty index.

        Raises
        ------
        EvaluationError
            If faiss knows no such index or parameter.
        """
        metric = faiss.METRIC_L2 if kind == "euclidean" else faiss.METRIC_INNER_PRODUCT
        with self.refusing(f"faiss makes no such index for {dim} numbers", _ADVICE):
            index = faiss.index_factory(dim, self.factory, metric)
            if self.parameters:
                faiss.ParameterSpace().set_index_parameters(index, self.parameters)  # type: ignore[arg-type]
        return index

    @contextmanager
    def refusing(self, what: str, advice: str) -> Iterator[None]:
        """Turn errors of faiss into one message."""
        try:
            yield
        except EvaluationError:
            raise
        except _FAILURES as error:
            raise EvaluationError(f"--index {self}: {what} ({_reason(error)}). {advice}") from error


def _reason(error: BaseException) -> str:
    """Return the message of faiss without source locations and conditions."""
    said = (str(error).strip() or type(error).__name__).splitlines()[-1]
    return re.sub(r"^Error in .*? at \S+:\d+: (Error: '.*?' failed: )?", "", said)
