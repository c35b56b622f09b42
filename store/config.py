"""Settings: the base class of every section, and the section of the store.

Only `pipelines` parses settings; functions elsewhere take plain arguments.
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
    """Type of the stored features; float16 halves the disk space, but values beyond 65,504 are refused."""

    compression: Literal["none", "zstd", "lz4"] = "none"
    """Compression saves little space with features, and slows reading down."""

    rows_per_chunk: int | None = Field(default=None, gt=0)
    """Rows in a chunk, a multiple of the batch size. By default 1,024, or fewer if rows are large."""
