"""A pipeline: one YAML file that says everything about a benchmark, with overrides from the command line.

`digits`, `folder`, ... are the files beside this module; any other YAML file is named by its path.
All faults of a file and its overrides are reported at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from evaluate.config import EvaluateConfig
from extract.config import DataConfig, ExtractConfig, ModelConfig, TransformConfig, WeightsConfig
from store import BenchError, LayerSpec, StoreError, nearest
from store.config import Config, StoreConfig
from store.layers import layers_of

SHIPPED = Path(__file__).parent
LOCAL = Path("bench.yaml")
DEFAULT = "digits"

NAME_PATTERN = r"[A-Za-z0-9_][A-Za-z0-9_.\-]*"
"""Names of feature sets, which are names of folders."""


class PipelineError(BenchError):
    """A pipeline that does not exist, or can't be read as one."""


class Pipeline(Config):
    """Data, model, layers, and how both stages run."""

    name: str = Field(default="features", pattern=f"^{NAME_PATTERN}$")
    """Name of the feature set: letters, digits, '_', '.' and '-'."""

    store: Path = Path("features")
    """Folder of feature sets."""

    data: DataConfig = DataConfig()
    transform: TransformConfig | None = None
    """By default what torchvision's weights ask for, or else resize 256, crop 224 and ImageNet's mean and std."""

    model: ModelConfig = ModelConfig()
    weights: WeightsConfig = WeightsConfig()

    layers: tuple[str, ...] = ("flatten",)
    """Layers to extract: `res4`, `res4:AvgPool2d(8,3,0)`, or VISSL's `[res4, [AvgPool2d, [[8, 8], 3, 0]]]`."""

    extract: ExtractConfig = ExtractConfig()
    storage: StoreConfig = StoreConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @field_validator("layers", mode="before")
    @classmethod
    def _readable(cls, layers: Any) -> tuple[str, ...]:
        if not isinstance(layers, Sequence) or isinstance(layers, str) or not layers:
            raise ValueError("must be a list of at least one layer")
        try:
            return tuple(str(layer) for layer in layers_of(layers))
        except StoreError as error:
            raise ValueError(str(error)) from error

    @property
    def layer_specs(self) -> tuple[LayerSpec, ...]:
        """The layers, read."""
        return layers_of(self.layers)


def load_pipeline(name: str | None = None, overrides: Mapping[str, Any] | None = None) -> Pipeline:
    """Read a pipeline and put overrides on top.

    Parameters
    ----------
    name : str, optional
        One that is shipped (`digits`), or a path of a YAML file. By default `bench.yaml` of the
        working folder, or else `digits`.
    overrides : mapping, optional
        Values by dotted key, such as `{"model.trunk": "resnet50"}`.

    Raises
    ------
    PipelineError
        If there is no such pipeline, or it has faults; all of them are listed.
    """
    path = find_pipeline(name)
    return make_pipeline(_read(path), overrides, where=str(path))


def make_pipeline(settings: dict[str, Any], overrides: Mapping[str, Any] | None = None, *, where: str) -> Pipeline:
    """Make a pipeline of settings that are read already; see `load_pipeline`."""
    for key, value in (overrides or {}).items():
        _put(settings, key, value)
    try:
        return Pipeline.model_validate(settings)
    except ValidationError as error:
        raise PipelineError(_faults(where, error)) from error


def find_pipeline(name: str | None) -> Path:
    """Return the YAML file that a name means."""
    if name is None:
        return LOCAL if LOCAL.is_file() else SHIPPED / f"{DEFAULT}.yaml"
    shipped = SHIPPED / f"{name}.yaml"
    if shipped.is_file() and "/" not in name:
        return shipped
    path = Path(name)
    if path.is_file():
        return path
    raise PipelineError(f"no pipeline {name!r}. {nearest(name, pipeline_names())} Or give the path of a YAML file.")


def pipeline_names() -> list[str]:
    """Names of the shipped pipelines."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def parse_overrides(texts: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` words; values are YAML.

    Examples
    --------
    >>> parse_overrides(["model.trunk=resnet50", "evaluate.knn.k=[20,200]"])
    {'model.trunk': 'resnet50', 'evaluate.knn.k': [20, 200]}
    """
    overrides = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise PipelineError(f"{text!r} is neither a pipeline nor an override of the form key=value")
        try:
            overrides[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise PipelineError(f"{text}: the value is not YAML: {error}") from error
    return overrides


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path}: not YAML: {error}") from error
    if settings is not None and not isinstance(settings, dict):
        raise PipelineError(f"{path}: expected keys and values, such as `name: my_features`; got {settings!r}")
    return settings or {}


def _put(settings: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(settings.get(parent), dict):
            settings[parent] = {}
        settings = settings[parent]
    settings[last] = value


def _faults(where: str, error: ValidationError) -> str:
    faults: dict[str, str] = {}
    for fault in error.errors():
        key, section = _place(fault["loc"])
        if fault["type"] == "extra_forbidden":
            name = str(fault["loc"][-1])
            prefix = key[: len(key) - len(name)]
            hint = nearest(name, section.model_fields).replace("Did you mean ", f"Did you mean {prefix}")
            faults[key] = f"no such setting. {hint}"
        else:
            message = fault["msg"].removeprefix("Value error, ")
            if key in faults:  # another of the types that it could have
                faults[key] = f"{message[0].lower()}{message[1:]}, or: {faults[key]}"
            else:
                faults[key] = f"{message}; got {_brief(fault['input'])}"
    count = "1 setting is" if len(faults) == 1 else f"{len(faults)} settings are"
    return f"{where}: {count} wrong:\n  " + "\n  ".join(f"{key}: {text}" for key, text in faults.items())


def _place(loc: Sequence[int | str]) -> tuple[str, type[BaseModel]]:
    """The dotted key of a fault, without what pydantic adds for each type of a union; and its section."""
    section: type[BaseModel] = Pipeline
    for depth, part in enumerate(loc, start=1):
        field = section.model_fields.get(str(part))
        options = [] if field is None else [field.annotation, *get_args(field.annotation)]
        models = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if not models:
            return ".".join(map(str, loc[:depth])), section
        section = models[0]
    return ".".join(map(str, loc)), section


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
