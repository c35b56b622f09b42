"""Settings: the base of every section, and the section of the store itself.

Only pipelines parse settings; the functions that they call take plain arguments.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Config(BaseModel):
    """Base of every section: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True)


class StoreConfig(Config):
    """How features are stored."""

    dtype: Literal["float32", "float16"] = "float32"
    """float16 takes half the disk; a value beyond 65,504 is refused."""

    compression: Literal["none", "zstd", "lz4"] = "none"
    """Features hardly compress, and reading slows down."""

    rows_per_chunk: int | None = Field(default=None, gt=0)
    """Rows of one chunk, a multiple of the batch size; 1,024 or less by default, so that a chunk stays small."""
