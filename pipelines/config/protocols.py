"""User-defined protocols from YAML files: a mapping of names to settings.

`mine: {like: dino, k: [5, 20], temperature: 0.05}` is DINO's protocol with a different k and temperature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.knn.protocols import KnnProtocol, find_protocol, make_protocol
from featbench.pipelines.config.documents import read_yaml
from featbench.store.documents import DocumentError


def find_protocols(names: Sequence[str]) -> Mapping[str, KnnProtocol]:
    """Look protocols up: built-in ones by name, those of a YAML file by its path.

    Raises
    ------
    EvaluationError
        If there is no such protocol, or a file can't be read as protocols.
    """
    found: dict[str, KnnProtocol] = {}
    for name in names:
        found |= read_protocols(Path(name)) if name.endswith((".yaml", ".yml")) else {name: find_protocol(name)}
    return found


def read_protocols(path: Path) -> dict[str, KnnProtocol]:
    """Read the protocols of a YAML file."""
    try:
        content = read_yaml(path)
    except DocumentError as error:
        raise EvaluationError(str(error)) from error
    if not isinstance(content, dict) or not content or not all(isinstance(each, dict) for each in content.values()):
        raise EvaluationError(f"{path}: expected names with settings, such as 'mine: {{like: dino, k: [5, 20]}}'")
    try:
        return {str(name): make_protocol(str(name), settings) for name, settings in content.items()}
    except EvaluationError as error:
        raise EvaluationError(f"{path}: {error}") from error
