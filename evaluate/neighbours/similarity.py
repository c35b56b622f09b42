"""The similarities that a search can use."""

from __future__ import annotations

from typing import Literal

Similarity = Literal["cosine", "inner_product", "euclidean"]
