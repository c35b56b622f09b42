"""Layers derived from stored ones: concatenated, centered, projected onto principal components, whitened.

Mean, components and variances are fitted in float64 on the selected rows of train. Derived rows are computed from the
stored rows whenever they are read, chunk by chunk, and are never written to disk.

Shape suffixes:  N rows   D dimension of the sources   P dimension of the result
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.labels import Labelled
from featbench.evaluate.features.layers import EvalLayer
from featbench.evaluate.features.selection import Layer, Selection, lengths_of, scale_to_unit_length
from featbench.evaluate.memory import in_words
from featbench.store import Block
from featbench.store.manifest import digest_of
from featbench.store.reader import OnRows
from featbench.store.typing import Doubles, Floats, Ints

T = TypeVar("T")

ALGORITHM = 1
"""Part of the digests of derived layers; raised when a change gives other numbers."""

CONCATENATED_ALGORITHM = 2
"""The same for concatenated layers, whose rows are scaled."""

_NOISE = 2.0**-20
"""Variances below this fraction of the largest are rounding errors of float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to derive layers."""

    concatenate: bool = False
    """Concatenate the layers, each row of each layer scaled to length 1 first."""

    center: bool = False
    """Subtract the mean of train."""

    pca: int | None = None
    """Keep this many principal components; implies centering."""

    whiten: bool = False
    """Scale every principal component to variance 1; implies centering."""

    def __bool__(self) -> bool:
        return self != Recipe()


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """Subtract `mean_D`, then multiply by `axes_DP` unless that is None."""

    mean_D: Doubles
    axes_DP: Doubles | None = None

    def __call__(self, features_ND: Floats) -> Floats:
        centered_ND = features_ND - self.mean_D
        projected = centered_ND if self.axes_DP is None else centered_ND @ self.axes_DP
        return projected.astype(np.float32)


class DerivedLayer:
    """A layer of one split that is computed from stored ones as it is read.

    See `featbench.evaluate.features.selection.Layer`.
    """

    def __init__(self, sources: Sequence[Layer], projection: Projection | None = None) -> None:
        self._sources = sources
        self._projection = projection
        self.key = " + ".join(source.key for source in sources)
        self.num_rows = sources[0].num_rows
        self.dim = sum(source.dim for source in sources)
        if projection is not None and projection.axes_DP is not None:
            self.dim = projection.axes_DP.shape[1]

    @property
    def rows_per_chunk(self) -> int:
        """Rows per chunk, the same for all layers of a feature set."""
        return self._sources[0].rows_per_chunk

    def map_blocks(
        self,
        prepare: Callable[[Block], T],
        rows_per_block: int,
        chunks: range | None = None,
        on_rows: OnRows | None = None,
    ) -> Iterator[T]:
        """Yield what `prepare` makes of each block; the sources are read ahead."""
        for blocks in zip(*(each.map_blocks(_same, rows_per_block, chunks) for each in self._sources), strict=True):
            features = np.empty((len(blocks[0].features), self.dim), np.float32)
            for at in range(0, len(features), self.rows_per_chunk):  # as `peek` does, bit for bit
                piece = slice(at, at + self.rows_per_chunk)
                features[piece] = self._derive([block.features[piece] for block in blocks])
                if on_rows is not None:
                    on_rows(blocks[0].start + at, features[piece])
            yield prepare(Block(start=blocks[0].start, features=features))

    def peek(self, chunk: int) -> Floats:
        """Return the rows of one chunk that was read before."""
        return self._derive([source.peek(chunk) for source in self._sources])

    def _derive(self, stored: Sequence[Floats]) -> Floats:
        if len(stored) > 1:
            stored = [np.array(each) for each in stored]
            for each in stored:
                scale_to_unit_length(each, lengths_of(each))
        features = np.concatenate(stored, axis=1) if len(stored) > 1 else stored[0]
        return self._projection(features) if self._projection else features


def derived_layers(layers: Sequence[EvalLayer], recipe: Recipe, train: Labelled, *, memory: int) -> list[EvalLayer]:
    """Derive layers by a recipe: one from all of them, or one from each.

    Parameters
    ----------
    layers : sequence of EvalLayer
        Stored layers.
    recipe : Recipe
        How to derive them.
    train : Labelled
        Rows to fit on.
    memory : int
        Bytes that fitting may use.

    Raises
    ------
    EvaluationError
        If more components are asked for than there are, or fitting does not fit into the memory.
    """
    groups = [list(layers)] if recipe.concatenate else [[layer] for layer in layers]
    return [_derived(group, recipe, train, memory) for group in groups]


def name_of(names: Sequence[str], recipe: Recipe) -> str:
    """Name a derived layer.

    Examples
    --------
    >>> name_of(["res4", "res5"], Recipe(concatenate=True, pca=64, whiten=True))
    'res4+res5.pca64.whiten'
    """
    steps = {"center": recipe.center, f"pca{recipe.pca}": recipe.pca, "whiten": recipe.whiten}
    return ".".join(["+".join(names), *(step for step, wanted in steps.items() if wanted)])


def origins_of(name: str) -> list[tuple[list[str], Recipe]]:
    """Find from which layers a derived layer of this name can come, and how: several ways if their names have dots.

    Examples
    --------
    >>> origins_of("res5.pca64")
    [(['res5'], Recipe(concatenate=False, center=False, pca=64, whiten=False))]
    """
    words, found = name.split("."), []
    for first in range(1, len(words) + 1):
        names, steps = ".".join(words[:first]).split("+"), words[first:]
        pca = [int(step[3:]) for step in steps if step.startswith("pca") and step[3:].isdecimal()]
        recipe = Recipe(
            concatenate=len(names) > 1, center="center" in steps, pca=pca[0] if pca else None, whiten="whiten" in steps
        )
        if recipe and name_of(names, recipe) == name:
            found.append((names, recipe))
    return found


def digests_of(
    names: Sequence[str], sources: Sequence[Mapping[str, str]], recipe: Recipe, train_rows: Ints
) -> dict[str, str]:
    """Compute by split the digest of a derived layer: of all that its features are computed from.

    Parameters
    ----------
    names : sequence of str
        The layers that it comes from.
    sources : sequence of mapping of str to str
        Their digests, by split.
    recipe : Recipe
    train_rows : ndarray of int64
        Rows that it is fitted on.
    """
    rows = hashlib.sha256(train_rows.tobytes()).hexdigest()
    algorithm = CONCATENATED_ALGORITHM if len(names) > 1 else ALGORITHM
    steps = [recipe.center, recipe.pca, recipe.whiten]
    return {
        split: digest_of([algorithm, split, list(names), list(map(dict, sources)), rows, steps]) for split in sources[0]
    }


def _derived(group: Sequence[EvalLayer], recipe: Recipe, train: Labelled, memory: int) -> EvalLayer:
    names = [layer.name for layer in group]
    fitted_on = Selection(layer=DerivedLayer([layer.layers["train"] for layer in group]), rows=train.rows)
    projection = _fit(fitted_on, recipe, memory)
    layers: dict[str, Layer] = {
        split: DerivedLayer([layer.layers[split] for layer in group], projection) for split in group[0].layers
    }
    name = name_of(names, recipe)
    made_from = digests_of(names, [layer.made_from for layer in group], recipe, train.rows)
    facts = replace(
        group[0].facts,
        layer=name,
        dim=layers["train"].dim,
        tap=" + ".join(str(layer.facts.tap) for layer in group),
        pooling=" + ".join(str(layer.facts.pooling) for layer in group),
    )
    return EvalLayer(name=name, layers=layers, made_from=made_from, facts=facts)


def _fit(train: Selection, recipe: Recipe, memory: int) -> Projection | None:
    if not (recipe.center or recipe.pca or recipe.whiten):
        return None
    mean_D = _sum(train, lambda features: features.sum(axis=0)) / len(train)
    if not (recipe.pca or recipe.whiten):
        return Projection(mean_D=mean_D)
    dim = train.layer.dim
    needed = 4 * dim**2 * 8
    if needed > memory:
        raise EvaluationError(
            f"{train.layer.key}: components of {dim:,} numbers need {in_words(needed)} of memory; "
            f"{in_words(memory)} are allowed. Give more with --memory, or pool the layer to fewer numbers."
        )

    def scatter(features: Doubles) -> Doubles:
        centered = features - mean_D
        product: Doubles = centered.T @ centered
        return product

    variances, axes_DP = np.linalg.eigh(_sum(train, scatter) / max(1, len(train) - 1))
    variances, axes_DP = variances[::-1], axes_DP[:, ::-1]
    rank = int((variances > variances[0] * _NOISE).sum()) if variances[0] > 0 else 0
    wanted = recipe.pca or rank
    if not 1 <= wanted <= rank:
        raise EvaluationError(
            f"{train.layer.key}: --pca must be in [1, {rank}], the directions in which {len(train):,} rows of "
            f"{dim:,} numbers vary; got {wanted}"
        )
    axes_DP = axes_DP[:, :wanted]
    if recipe.whiten:
        axes_DP = axes_DP / np.sqrt(variances[:wanted])
    return Projection(mean_D=mean_D, axes_DP=np.ascontiguousarray(axes_DP))


def _sum(train: Selection, of: Callable[[Doubles], Doubles]) -> Doubles:
    """Sum a function of all rows, chunk by chunk."""
    total: Any = 0.0
    for block in train.blocks(train.layer.rows_per_chunk, unit_length=False):
        total = total + of(block.features.astype(np.float64))
    return np.asarray(total)


def _same(block: Block) -> Block:
    return block
