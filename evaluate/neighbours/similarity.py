"""The similarities by which neighbours are found."""

from __future__ import annotations

from typing import Literal

Similarity = Literal["cosine", "inner_product", "euclidean"]
