"""Results that earlier evaluations saved in a feature set."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from featbench.store import FeatureSet
from featbench.store.paths import RESULTS

logger = logging.getLogger(__name__)


def saved_records(features: FeatureSet) -> Iterator[Mapping[str, Any]]:
    """Yield the records of all saved evaluations, the latest evaluation first; what can't be read is left out."""
    folder = features.path / RESULTS
    for path in sorted(folder.glob("*.json"), reverse=True) if folder.is_dir() else ():
        try:
            records = json.loads(path.read_bytes())["records"]
            yield from (record for record in records if isinstance(record, dict))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            logger.warning("%s: not a saved evaluation (%s), left out", path, error)
