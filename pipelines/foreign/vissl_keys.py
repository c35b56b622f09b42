"""The keys of a VISSL configuration: which are translated, which are ignored, which are not supported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

IGNORED = (
    "VERBOSE", "LOG_FREQUENCY", "TEST_EVERY_NUM_EPOCH", "TEST_MODEL", "SEED_VALUE", "MULTI_PROCESSING_METHOD",
    "ENGINE", "hydra*", "MONITOR_PERF_STATS", "PERF_STAT_FREQUENCY", "ROLLING_BTIME_FREQ", "PROFILING*",
    "REPRODUCIBILITY*", "TENSORBOARD_SETUP*", "HOOKS*", "TRAINER*", "METERS*", "OPTIMIZER*", "LOSS*", "CHECKPOINT*",
    "DISTRIBUTED*", "SLURM*", "CLUSTERFIT*", "RANKING*", "SVM*", "IMG_RETRIEVAL*", "DATA.PIN_MEMORY",
    "DATA.DDP_BUCKET*",
    "DATA.ENABLE_ASYNC_GPU_COPY", "DATA.*.MMAP_MODE", "DATA.*.COPY_TO_LOCAL_DISK", "DATA.*.COPY_DESTINATION_DIR",
    "DATA.*.DEFAULT_GRAY_IMG_SIZE", "DATA.*.ENABLE_QUEUE_DATASET", "DATA.*.INPUT_KEY_NAMES", "DATA.*.TARGET_KEY_NAMES",
    "DATA.*.COLLATE_FUNCTION*", "DATA.*.LABEL_TYPE", "DATA.*.DATA_LIMIT_SAMPLING*",
    "DATA.*.USE_STATEFUL_DISTRIBUTED_SAMPLER", "DATA.*.BASIC_DATASET", "DATA.*.RANDOM_SYNTHETIC_IMAGES",
    "EXTRACT_FEATURES*", "MACHINE.DEVICE", "NEAREST_NEIGHBOR.OPTIMIZE_MEMORY", "MODEL.AMP_PARAMS*",
    "MODEL.SYNC_BN_CONFIG*",
    "MODEL.FSDP_CONFIG*", "MODEL.ACTIVATION_CHECKPOINTING*", "MODEL.CUDA_CACHE*", "MODEL.GRAD_CLIP*",
    "MODEL._MODEL_INIT_SEED", "MODEL.BASE_MODEL_NAME", "MODEL.HEAD.PARAMS_MULTIPLIER", "MODEL.HEAD.BATCHNORM_MOMENTUM",
    "MODEL.TEMP_FROZEN_PARAMS_ITER_MAP", "MODEL.FEATURE_EVAL_SETTINGS.SHOULD_FLATTEN_FEATS",
    "MODEL.FEATURE_EVAL_SETTINGS.FREEZE_TRUNK_*", "MODEL.FEATURE_EVAL_SETTINGS.ASSERT_HEAD_LAYER_SHAPE_INIT",
    "*.ZERO_INIT_RESIDUAL", "*.GROUPNORM_GROUPS", "*.DROPOUT_RATE", "*.ATTENTION_DROPOUT_RATE", "*.DROP_PATH_RATE",
    "*.IMAGE_SIZE", "*.CLASSIFIER",
)  # fmt: skip
"""Keys that change no result here. Feature maps are stored as maps and flattened by the evaluation, whatever
`SHOULD_FLATTEN_FEATS` says; every image is computed once, whatever the sampler."""


@dataclass(slots=True)
class Keys:
    """The leaves of a configuration. Each is taken once; at the end, the rest is either ignored or not supported."""

    left: dict[str, Any]
    """Values by dotted key that were not taken yet."""

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Keys that were taken, and still have no effect."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Keys:
        """Flatten a configuration."""
        return cls(dict(_leaves(config)))

    def take(self, key: str, default: Any = None) -> Any:
        """Take one key, or VISSL's default."""
        return self.left.pop(key, default)

    def section(self, prefix: str) -> dict[str, Any]:
        """Take all keys below a prefix, without it."""
        found = {key: value for key, value in self.left.items() if key.startswith(f"{prefix}.")}
        self.drop(prefix)
        return {key.removeprefix(f"{prefix}."): value for key, value in found.items()}

    def drop(self, section: str) -> None:
        """Discard all keys below a section."""
        self.left = {key: value for key, value in self.left.items() if not key.startswith(f"{section}.")}

    def note(self, text: str) -> None:
        """Record that something has no effect."""
        self.notes.append(text)

    def fault(self, text: str) -> None:
        """Record an error."""
        self.faults.append(text)

    def must_be(self, key: str, *values: Any) -> None:
        """Take a key that may only have the values that are supported; the first is the default."""
        value = self.take(key, values[0])
        if value not in values:
            self.fault(f"{key}: {value!r} is not supported, only {' or '.join(map(repr, values))}")


def is_ignored(key: str) -> bool:
    """Whether a key changes no result here."""
    return any(fnmatchcase(key, pattern) for pattern in IGNORED)


def _leaves(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            leaves += _leaves(value, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", value))
    return leaves
