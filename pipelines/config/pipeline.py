"""A pipeline: one YAML file with all settings of a benchmark, and overrides from the command line.

`digits`, `folder`, ... are the files beside this module; any other YAML file is named by its path.
A pipeline may extend another (`base: in1k`), and may name a data set of the catalogue (`data.name`).
All faults of a file and its overrides are reported together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import BaseModel, Field, InstanceOf, PlainSerializer, ValidationError, WithJsonSchema, field_validator

from featbench.evaluate.config import EvaluateConfig
from featbench.extract.config import DataConfig, ExtractConfig, ModelConfig, TransformConfig, WeightsConfig
from featbench.pipelines.config.catalogue import CatalogueError, settings_of
from featbench.pipelines.config.documents import parse_yaml, read_yaml
from featbench.pipelines.config.faults import describe
from featbench.store import BenchError, LayerSpec, StoreError, suggest
from featbench.store.config import Config, StoreConfig
from featbench.store.documents import DocumentError, brief, brief_text
from featbench.store.layers import layers_of
from featbench.store.names import visible

SHIPPED = Path(__file__).parent
_NO_PIPELINES = ("datasets",)
MATRIX = "matrix"
"""Key of a file that makes it a suite: what varies between its runs; see `featbench.pipelines.suites`."""

LOCAL = Path("bench.yaml")
DEFAULT = "digits"

MOST_LEVELS = 16
"""Dots in the name of a setting; the deepest have four, and options of models are free."""

MOST_FAULTS = 30
"""Faults that one message lists."""

NAME_PATTERN = r"[A-Za-z0-9_][A-Za-z0-9_.\-]*"
"""Names of feature sets; they are names of folders, too."""


class PipelineError(BenchError):
    """A pipeline does not exist, or is not valid."""


WHOLE = ("weights",)
"""Sections that replace the base's as a whole: one source of weights excludes the others."""


Layer = Annotated[
    InstanceOf[LayerSpec], PlainSerializer(str, return_type=str), WithJsonSchema({"type": ["string", "array"]})
]
"""A layer, parsed; written as text."""


class Pipeline(Config):
    """Data, model, layers, and how both stages run."""

    name: str = Field(default="features", pattern=f"^{NAME_PATTERN}$")
    """Name of the feature set, of letters, digits, '_', '.' and '-'."""

    store: Path = Path("features")
    """Folder of feature sets."""

    data: DataConfig = DataConfig()
    transform: TransformConfig | None = None
    """By default that of torchvision's weights, or else resize 256, crop 224 and ImageNet's mean and std."""

    model: ModelConfig = ModelConfig()
    weights: WeightsConfig = WeightsConfig()

    layers: tuple[Layer, ...] = Field((LayerSpec.of("flatten"),), json_schema_extra={"default": ["flatten"]})
    """Layers to store, such as `res4` or `res4:AvgPool2d(8,3,0)`."""

    extract: ExtractConfig = ExtractConfig()
    storage: StoreConfig = StoreConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @field_validator("layers", mode="before")
    @classmethod
    def _readable(cls, layers: Any) -> tuple[LayerSpec, ...]:
        if not isinstance(layers, Sequence) or isinstance(layers, str) or not layers:
            raise ValueError("must be a list of at least one layer")
        try:
            return layers_of(layers)
        except StoreError as error:
            raise ValueError(str(error)) from error


def load_pipeline(
    name: str | None = None, overrides: Mapping[str, Any] | None = None, *, is_member: bool = False
) -> Pipeline:
    """Read a pipeline and apply overrides.

    Parameters
    ----------
    name : str, optional
        One that is shipped (`digits`), or a path of a YAML file. By default `bench.yaml` of the
        working folder, or else `digits`.
    overrides : mapping, optional
        Values by dotted key, such as `{"model.trunk": "resnet50"}`.
    is_member : bool
        Whether this is one run of a suite, whose file has a matrix.

    Raises
    ------
    PipelineError
        If there is no such pipeline, or it has faults; the message lists all of them.
    """
    path = find_pipeline(name)
    settings = _read(path)
    if settings.pop(MATRIX, None) is not None and not is_member:
        raise PipelineError(f"{path}: a suite, since it has a {MATRIX}; run it: bench run {path}")
    return make_pipeline(settings, overrides, where=str(path))


def read_matrix(path: Path) -> dict[str, Any]:
    """Read the matrix of a pipeline's file; empty if it has none.

    Raises
    ------
    PipelineError
        If the file can't be read, or its matrix is no mapping.
    """
    matrix = _read(path).get(MATRIX)
    if matrix is not None and (not isinstance(matrix, dict) or not matrix):
        raise PipelineError(
            f"{path}: {MATRIX}: expected settings and their values, such as {{weights: [a.pth, b.pth]}}"
        )
    return matrix or {}


def weights_settings(text: str) -> dict[str, Any]:
    """Settings that replace whichever source of weights a pipeline has, by dotted key.

    Examples
    --------
    >>> weights_settings("a.pth")["weights.file"], weights_settings("DEFAULT")["weights.torchvision"]
    ('a.pth', 'DEFAULT')
    """
    is_file = Path(text).exists() or "/" in text or Path(text).suffix != ""
    return {
        "weights.file": text if is_file else None,
        "weights.torchvision": text if not is_file else None,
        "weights.random_seed": None,
    }


def make_pipeline(settings: dict[str, Any], overrides: Mapping[str, Any] | None = None, *, where: str) -> Pipeline:
    """Make a pipeline from settings; see `load_pipeline`."""
    for key, value in (overrides or {}).items():
        _put(settings, key, value)
    unknown = _look_up(settings)
    unknown |= _out_of_place(overrides or {})
    unknown |= dict.fromkeys(_with_nul(settings), "contains the character NUL, which no name or path can")
    try:
        pipeline = Pipeline.model_validate(settings)
    except ValidationError as error:
        raise PipelineError(_listed(where, _faults(error) | unknown)) from error
    except UnicodeEncodeError as error:  # pydantic could not say so itself
        named = visible(repr(error.object[error.start : error.end]))
        raise PipelineError(f"{where}: a setting holds {named}, a byte that is not UTF-8, where none can be") from error
    if unknown:
        raise PipelineError(_listed(where, unknown))
    return pipeline


def as_yaml(pipeline: Pipeline) -> str:
    """Write a pipeline with all its settings as YAML that can be read again."""
    settings = pipeline.model_dump(mode="json")
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    # YAML can escape the characters that a terminal would act upon; they read back as the same text.
    return text if visible(text) == text else yaml.safe_dump(settings, sort_keys=False)


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of pipeline files, for editors."""
    schema = Pipeline.model_json_schema()
    schema["title"] = "featbench pipeline"
    text = "Pipeline that this one extends: a shipped one by name, or a path relative to this file."
    schema["properties"] = {"base": {"type": "string", "description": text}, **schema["properties"]}
    return schema


def find_pipeline(name: str | None) -> Path:
    """Return the YAML file that a name means."""
    if name is None:
        return LOCAL if LOCAL.is_file() else SHIPPED / f"{DEFAULT}.yaml"
    if name in pipeline_names():
        return SHIPPED / f"{name}.yaml"
    path = Path(name)
    if path.is_file():
        return path
    raise PipelineError(f"no pipeline {name!r}. {suggest(name, pipeline_names())} Or give the path of a YAML file.")


def pipeline_names() -> list[str]:
    """Names of the shipped pipelines."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml") if path.stem not in _NO_PIPELINES)


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
        if not separator or not key or key.count(".") > MOST_LEVELS:
            raise PipelineError(f"{brief(text)} is neither a pipeline nor an override of the form key=value")
        try:
            overrides[key] = parse_yaml(value, where=brief_text(text))
        except DocumentError as error:
            raise PipelineError(str(error)) from error
    return overrides


def _read(path: Path, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a file and the one that it extends."""
    settings = _read_alone(path)
    if "base" not in settings:
        return settings
    named = settings.pop("base")
    if not isinstance(named, str):
        raise PipelineError(f"{path}: base must be the name or path of one pipeline; got {brief(named)}")
    beside = path.parent / named
    if not beside.is_file() and named not in pipeline_names():
        raise PipelineError(
            f"{path}: base: no pipeline {named!r}. {suggest(named, pipeline_names())} Or a path relative to this file."
        )
    base = beside if beside.is_file() else find_pipeline(named)
    if base.resolve() in (chain := (*extending, path.resolve())):
        raise PipelineError(f"{path}: base {named} extends it in turn: {' -> '.join(p.name for p in (*chain, base))}")
    settings.setdefault("name", path.stem)
    return _merged(_read(base, chain), settings)


def _merged(base: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in settings.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict) and key not in WHOLE
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _with_nul(value: Any, key: str = "") -> Iterator[str]:
    """Find the settings whose value or name contains NUL, which ends a string for the operating system."""
    if isinstance(value, str):
        if "\0" in value:
            yield key
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _with_nul(name, key or str(name))
            yield from _with_nul(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _with_nul(inner, key)


def _look_up(settings: dict[str, Any]) -> dict[str, str]:
    """Fill in what the catalogue has for the data set, where the pipeline has nothing; return faults."""
    data = settings.get("data")
    if isinstance(data, dict) and isinstance(name := data.get("name"), str):
        try:
            known = settings_of(name)
            source = known.get("source", DataConfig.model_fields["source"].default)
            if data.get("source", source) != source:
                # Another source has another layout, so the catalogue's does not apply.
                known = {key: value for key, value in known.items() if key == "root"}
            settings["data"] = known | {key: value for key, value in data.items() if value is not None}
        except CatalogueError as error:
            return {"data.name": str(error)}
    return {}


def _read_alone(path: Path) -> dict[str, Any]:
    try:
        settings = read_yaml(path)
    except DocumentError as error:
        raise PipelineError(str(error)) from error
    if settings is not None and not isinstance(settings, dict):
        raise PipelineError(f"{path}: expected keys and values, such as `name: my_features`; got {brief(settings)}")
    wrong = [key for key in settings or () if not isinstance(key, str)]
    if wrong:
        raise PipelineError(f"{path}: a setting's name must be text; got {brief(wrong[0])}")
    return settings or {}


def _put(settings: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(settings.get(parent), dict):
            settings[parent] = {}
        settings = settings[parent]
    settings[last] = value


def _out_of_place(overrides: Mapping[str, Any]) -> dict[str, str]:
    """Describe the overrides within what another override gives as one value."""
    return {
        inner: f"{outer} has no settings of its own; it is {brief_text(str(overrides[outer]))}"
        for inner in overrides
        for outer in accumulate(inner.split(".")[:-1], "{}.{}".format)
        if outer in overrides and not isinstance(overrides[outer], Mapping)
    }


def _faults(error: ValidationError) -> dict[str, str]:
    """Describe what is wrong, by setting."""
    faults: dict[str, str] = {}
    several: dict[str, list[Mapping[str, Any]]] = {}
    for fault in error.errors():
        key, section = _place(fault["loc"])
        if fault["type"] == "extra_forbidden":
            name = str(fault["loc"][-1])
            prefix = key[: len(key) - len(name)]
            hint = suggest(name, section.model_fields).replace("Did you mean ", f"Did you mean {prefix}")
            faults[key] = f"no such setting. {hint}"
        else:
            several.setdefault(key, []).append(fault)
            faults[key] = describe(several[key])
    return faults


def _listed(where: str, faults: Mapping[str, str]) -> str:
    count = "1 setting is" if len(faults) == 1 else f"{len(faults)} settings are"
    shown = [f"{brief_text(key)}: {brief_text(text, most=600)}" for key, text in islice(faults.items(), MOST_FAULTS)]
    more = [f"... ({len(faults)} in all)"] if len(faults) > MOST_FAULTS else []
    return f"{where}: {count} wrong:\n  " + "\n  ".join([*shown, *more])


def _place(loc: Sequence[int | str]) -> tuple[str, type[BaseModel]]:
    """Return the dotted key of a fault, without what pydantic adds for members of a union, and its section."""
    section: type[BaseModel] = Pipeline
    for depth, part in enumerate(loc, start=1):
        field = section.model_fields.get(str(part))
        options = [] if field is None else [field.annotation, *get_args(field.annotation)]
        models = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if not models:
            return ".".join(map(str, loc[:depth])), section
        section = models[0]
    return ".".join(map(str, loc)), section
