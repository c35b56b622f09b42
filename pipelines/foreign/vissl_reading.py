"""Read what a command of VISSL's names: its YAML files and presets, and overrides in Hydra's syntax.

`config=benchmark/nearest_neighbor/eval_resnet_8gpu_in1k_kNN` names a file of VISSL's, as does
`+config/benchmark/nearest_neighbor/models=seer/regnet256gf_1`, which overrides it; `config.KEY=VALUE` overrides both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featbench.pipelines.config.documents import read_yaml
from featbench.pipelines.config.pipeline import PipelineError, parse_overrides
from featbench.pipelines.foreign.vissl import Translation, current, translate
from featbench.pipelines.foreign.vissl_presets import BENCHMARK, CONFIGS, MODELS
from featbench.pipelines.foreign.words import ENGINE
from featbench.store import suggest
from featbench.store.documents import DocumentError, brief

_BESIDE_CONFIG = (ENGINE, "hydra", "defaults")
"""Keys that stand beside `config` in a file, or in its place on the command line."""

_PLACES = ("configs/config", "config", "")
"""Where a checkout of VISSL, its folder `configs`, or a folder of files has the YAML files."""


def read_vissl(files: Sequence[Path], overrides: Sequence[str] = (), *, names: Sequence[str] = (),
               root: Path | None = None) -> Translation:  # fmt: skip
    """Read and translate VISSL's configurations, each overriding those before it, with overrides last.

    Parameters
    ----------
    files : sequence of Path
        YAML files.
    overrides : sequence of str
        `config.KEY=VALUE`.
    names : sequence of str
        Names of VISSL's configurations, read after the files.
    root : Path, optional
        A checkout of VISSL, in which names are looked up first.

    Raises
    ------
    PipelineError
        If a file can't be read or found, or can't be translated.
    """
    sources = [(str(file), _read(file)) for file in files] + [_find(name, root) for name in names]
    config: dict[str, Any] = {}
    beside: dict[str, Any] = {}
    for where, content in sources:
        inner = content.get("config", content)
        if not isinstance(inner, dict):
            raise PipelineError(f"{where}: config: expected VISSL's keys, such as MODEL and DATA; got {brief(inner)}")
        # What stands beside `config` belongs to the tool that runs it.
        outer = {
            key: content[key] for key in content if key != "config" and (key in _BESIDE_CONFIG or "config" in content)
        }
        beside |= outer
        _merge(config, current({key: value for key, value in inner.items() if key not in outer}))
    typed = parse_overrides([_without_deletion(word.lstrip("+")) for word in overrides])
    for key, value in typed.items():
        if key.startswith("config."):
            _put(config, key.removeprefix("config.").replace(".TRUNK_PARAMS.", ".").split("."), value)
        elif key == ENGINE:
            beside[ENGINE] = value
    beside = {key: value for key, value in beside.items() if key in ("hydra", "defaults") or value not in (None, "")}
    if any(isinstance(value, Mapping) for value in beside.values()):
        beside = {key: brief(value) if isinstance(value, Mapping) else value for key, value in beside.items()}
    try:
        return translate(
            {**config, **beside},
            where=" + ".join(where for where, _ in sources),
            typed=frozenset(key.removeprefix("config.") for key in typed),
        )
    except PipelineError as error:
        base = _base_needed([where for where, _ in sources])
        raise PipelineError(f"{error}\n{base}") if base else error from None


def _without_deletion(word: str) -> str:
    if word.startswith("~"):
        raise PipelineError(f"{brief(word)}: Hydra's deletion of keys is not supported; give the key another value")
    return word


def _read(file: Path) -> dict[str, Any]:
    try:
        content = read_yaml(file)
    except DocumentError as error:
        raise PipelineError(str(error)) from error
    if not isinstance(content, dict):
        raise PipelineError(f"{file}: expected VISSL's keys, such as MODEL and DATA; got {type(content).__name__}")
    return content


def _find(name: str, root: Path | None) -> tuple[str, dict[str, Any]]:
    """Return what to call a configuration of VISSL's in messages, and its content."""
    if root is not None:
        if not root.is_dir():
            raise PipelineError(f"--vissl-root {root}: no such folder; expected a checkout of VISSL")
        for place in _PLACES:
            file = root / place / f"{name}.yaml"
            if file.is_file():
                return str(file), _read(file)
    if (file := Path(f"{name}.yaml")).is_file():
        return str(file), _read(file)
    for key in (name, f"{BENCHMARK}/{name}", f"{MODELS}/{name}"):
        if key in CONFIGS:
            return f"config={key}", {"config": CONFIGS[key]}
    where = f"not in {root / _PLACES[0]}, and " if root is not None else ""
    more = "" if root is not None else " For others, give a checkout of VISSL: --vissl-root FOLDER"
    raise PipelineError(
        f"config={name}: {where}not among the configurations of VISSL that ship here. {suggest(name, CONFIGS)}{more}"
    )


def _base_needed(sources: Sequence[str]) -> str:
    """Name the file that a model file overrides, if only model files were given."""
    if not sources or not all("/models/" in where for where in sources):
        return ""
    folder = sources[0].partition("/models/")[0]
    known = [key for key in CONFIGS if key.startswith(f"{BENCHMARK}/eval")]
    if not folder.endswith(BENCHMARK):
        known = sorted(str(file) for file in Path(folder).glob("*.yaml"))
    return f"{sources[0]} is a model file, which overrides a benchmark's. Give one of these before it: " + ", ".join(
        known
    )


def _put(section: dict[str, Any], path: Sequence[str], value: Any) -> None:
    *parents, last = path
    for parent in parents:
        if not isinstance(section.get(parent), dict):
            section[parent] = {}
        section = section[parent]
    section[last] = value


def _merge(config: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Override a configuration; sections that a file names twice by an anchor become two."""
    for key, value in more.items():
        if isinstance(value, Mapping):
            section = config.setdefault(key, {})
            if not isinstance(section, dict):
                section = config[key] = {}
            _merge(section, value)
        else:
            config[key] = value
