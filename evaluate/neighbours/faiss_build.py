"""What the installed faiss was built with."""

from __future__ import annotations

import re
from dataclasses import dataclass

import faiss


@dataclass(frozen=True, slots=True, kw_only=True)
class FaissBuild:
    """The build of faiss that is loaded."""

    version: str
    options: str
    """Instructions that it uses, as it names them, such as AVX2."""

    has_gpu_code: bool
    num_gpus: int
    """GPUs that it sees."""


def faiss_build() -> FaissBuild:
    """Return the build that is loaded."""
    has_gpu_code = hasattr(faiss, "StandardGpuResources")
    options = re.findall(r"\b(?:AVX|SSE|SVE|NEON)\w*", faiss.get_compile_options())
    return FaissBuild(
        version=faiss.__version__,
        options=" ".join(options),
        has_gpu_code=has_gpu_code,
        num_gpus=faiss.get_num_gpus() if has_gpu_code else 0,
    )
