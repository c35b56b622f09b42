"""What an undisturbed extraction makes, to compare with."""

from __future__ import annotations

import uuid

import pytest

from featbench.store import verify
from tests.reliability.ranks import chunks_of, finish, small_pipeline, start


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The chunks that one rank writes whom no one disturbs."""
    pipeline = small_pipeline(tmp_path_factory.mktemp("undisturbed"), "one")
    finish(start(pipeline, uuid.uuid4().hex, 1))
    path = pipeline.store / pipeline.name
    assert not list(verify(path))
    return chunks_of(path)
