"""Translate the YAML of VISSL's nearest-neighbour benchmark into a pipeline.

A key is either translated; or ignored and listed, if it changes no result (hooks, optimizers, launching); or an
error, if it would change the result and is not supported. All errors are reported together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from featbench.pipelines.config.pipeline import MOST_FAULTS, PipelineError
from featbench.pipelines.foreign.vissl_data import translate_data
from featbench.pipelines.foreign.vissl_keys import Keys, is_ignored
from featbench.pipelines.foreign.vissl_launch import Launch, translate_launch
from featbench.pipelines.foreign.vissl_model import POOLED_ONLY, translate_model
from featbench.store import StoreError
from featbench.store.documents import brief, brief_text
from featbench.store.layers import LayerSpec
from featbench.store.names import visible

INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""By Pillow's numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """A pipeline's settings, how VISSL would have started its processes, and the keys that were ignored."""

    settings: dict[str, Any]
    launch: Launch
    ignored: tuple[str, ...]

    def to_yaml(self, where: str) -> str:
        """Return the text of a pipeline file."""
        head = f"# Translated from VISSL's {visible(where, keep='')} by `bench import-vissl`.\n"
        head += f"# {self.launch.advice}\n" if self.launch.advice else ""
        tail = "".join(f"#   {visible(key, keep='')}\n" for key in self.ignored)
        body = yaml.safe_dump(self.settings, sort_keys=False, default_flow_style=None, width=100)
        return head + body + (f"# Ignored, without effect here:\n{tail}" if tail else "")


def translate(config: Mapping[str, Any], *, where: str, typed: Collection[str] = ()) -> Translation:
    """Translate a VISSL configuration.

    Parameters
    ----------
    config : mapping
        Content of the YAML, with or without the outermost `config`.
    where : str
        File names, joined by " + "; the feature set is named after them.
    typed : collection of str
        Keys that the command line overrides.

    Raises
    ------
    PipelineError
        If a key would change the result and is not supported; all such keys are listed.
    """
    inner = config.get("config", config)
    keys = Keys.of(current(inner) if isinstance(inner, Mapping) else {})
    settings: dict[str, Any] = {"name": _named_after(where.split(" + "))}
    for name, translator in _TRANSLATORS.items():
        try:
            settings[name] = translator(keys)
        except StoreError as error:
            settings[name] = {}
            keys.fault(f"{_SECTIONS[name]}: {error}")
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            # Instead of checking the type of each value; VISSL's own files have the right ones.
            settings[name] = {}
            keys.fault(f"{_SECTIONS[name]}: a value has the wrong type: {brief_text(error)}")
    if settings["transform"].get("channels") == "lab":
        _take_lightness(settings["model"], keys)
    if settings["layers"] != ["heads"]:
        settings["model"].pop("heads", None)
    launch = translate_launch(keys, typed)
    if launch.slurm is not None:
        settings["extract"] = {**settings["extract"], "slurm": launch.slurm}
    _check_engine(keys)
    ignored = [key for key in keys.left if is_ignored(key)] + keys.notes
    keys.faults += [f"{key}: not supported here" for key in keys.left if key not in ignored]
    if keys.faults:
        raise PipelineError(
            f"{where}: {len(keys.faults)} of VISSL's keys can't be translated:\n  "
            + "\n  ".join(brief_text(fault, most=400) for fault in keys.faults[:MOST_FAULTS])
        )
    settings = {key: value for key, value in settings.items() if value}
    return Translation(settings=settings, launch=launch, ignored=tuple(dict.fromkeys(ignored)))


def _take_lightness(model: dict[str, Any], keys: Keys) -> None:
    """Let the trunk take L* alone, as VISSL's models of colorization do."""
    if model.get("trunk") == "resnet":
        model["options"] = {**model["options"], "lightness": True}
    elif model.get("trunk") != "alexnet_colorization":
        keys.fault("MODEL.INPUT_TYPE: 'lab' is supported for resnet and alexnet_colorization")


def _named_after(files: Sequence[str]) -> str:
    """A name for the feature set; that of a model begins with its method, since several methods have a `deit_s16`."""
    stems = []
    for file in files:
        path = Path(file.removeprefix("config=").removesuffix(".yaml"))
        is_model = path.parent.parent.name == "models"
        stems.append(f"{path.parent.name}_{path.name}" if is_model else path.name)
    return re.sub(r"[^A-Za-z0-9_.\-]", "_", "_".join(stems)).lstrip(".") or "vissl"


def _check_engine(keys: Keys) -> None:
    """Take `engine_name`: kNN extracts features whatever it is, but other engines do something else."""
    engine = keys.take("engine_name", keys.take("ENGINE_NAME"))
    if engine == "extract_features":
        keys.note("engine_name=extract_features (what `bench extract` does; `bench run` also evaluates)")
    elif engine:
        keys.fault(f"engine_name: {engine!r} is not supported, only extract_features")


def _layers(keys: Keys) -> list[Any]:
    settings = keys.section("MODEL.FEATURE_EVAL_SETTINGS")
    for key, value in settings.items():
        keys.left[f"MODEL.FEATURE_EVAL_SETTINGS.{key}"] = value
    where = "MODEL.FEATURE_EVAL_SETTINGS."
    if keys.take(where + "EVAL_MODE_ON", False) is not True:
        keys.fault(f"{where}EVAL_MODE_ON: must be True to extract features")
    pooled = keys.take(where + "LINEAR_EVAL_FEAT_POOL_OPS_MAP", [])
    trunk_only = keys.take(where + "EXTRACT_TRUNK_FEATURES_ONLY", False)
    with_heads = keys.take(where + "EVAL_TRUNK_AND_HEAD", False)
    if pooled and not trunk_only:
        keys.fault(f"{where}EXTRACT_TRUNK_FEATURES_ONLY: must be True to extract layers of the trunk")
    if pooled:
        taps = [layer[0] for layer in pooled]
        specs = [LayerSpec.of(layer) for layer in pooled]
        if keys.left.get("MODEL.TRUNK.NAME") in POOLED_ONLY:
            return _final_vector(keys, taps)
        # As in VISSL, a layer has the name of its tap; there, a second pooling of a tap overwrites the first.
        return [f"{s.tap}={s.tap}:{s.pooling}" if taps.count(s.tap) == 1 else str(s) for s in specs]
    if trunk_only:
        return ["flatten"]
    if not with_heads:
        keys.fault(
            f"{where}EVAL_TRUNK_AND_HEAD: must be True to evaluate the head, which would be random otherwise; "
            f"or set EXTRACT_TRUNK_FEATURES_ONLY, for the trunk's output"
        )
    return ["heads"]


def _final_vector(keys: Keys, taps: list[str]) -> list[str]:
    """The one layer of a trunk that gives no others, under the name that the configuration has for it."""
    if len(taps) > 1 or "MAP" in taps[0]:
        trunk = keys.left.get("MODEL.TRUNK.NAME")
        keys.fault(f"MODEL.FEATURE_EVAL_SETTINGS.LINEAR_EVAL_FEAT_POOL_OPS_MAP: {trunk} gives its final vector alone")
    return [f"{taps[0]}=flatten"]


def _weights(keys: Keys) -> dict[str, Any]:
    file = keys.take("MODEL.WEIGHTS_INIT.PARAMS_FILE", "")
    key = keys.take("MODEL.WEIGHTS_INIT.STATE_DICT_KEY_NAME")
    remove = keys.take("MODEL.WEIGHTS_INIT.REMOVE_PREFIX") or ""
    add = keys.take("MODEL.WEIGHTS_INIT.APPEND_PREFIX") or ""
    skip = keys.take("MODEL.WEIGHTS_INIT.SKIP_LAYERS", ["num_batches_tracked"])
    if any(part != "num_batches_tracked" for part in skip):
        keys.fault(
            f"MODEL.WEIGHTS_INIT.SKIP_LAYERS: {skip} would leave them random; only num_batches_tracked can be skipped"
        )
    if str(file).startswith(("http://", "https://")):
        keys.fault("MODEL.WEIGHTS_INIT.PARAMS_FILE: bench downloads nothing. Download it and give the file")
    if _is_placeholder(file):
        keys.note(f"MODEL.WEIGHTS_INIT.PARAMS_FILE ({brief(file)} names no weights)")
        file = ""
    weights: dict[str, Any] = {"file": file} if file else {}
    if key == "classy_state_dict":  # for which VISSL ignores prefixes
        return weights | {"key": "classy_state_dict.base_model.model"}
    if key:
        weights["key"] = ".".join(key) if isinstance(key, list) else key
    return weights | ({"remove_prefix": remove} if remove else {}) | ({"add_prefix": add} if add else {})


_PLACEHOLDER = r"(please |the )?(specify|override|path to)\b|<.*>$|manifold://"
"""What VISSL's files have in place of weights: instructions, and files on its authors' own storage."""


def _is_placeholder(file: Any) -> bool:
    return re.match(_PLACEHOLDER, str(file).strip(), re.IGNORECASE) is not None and not Path(str(file)).exists()


def _transform(keys: Keys) -> dict[str, Any]:
    channels = keys.take("MODEL.INPUT_TYPE", "rgb")
    if channels not in ("rgb", "bgr", "lab"):
        keys.fault(f"MODEL.INPUT_TYPE: {channels!r} is not supported, only 'rgb', 'bgr' or 'lab'")
    settings = _steps(keys, _LAB_STEPS if channels == "lab" else _STEPS)
    return settings if channels == "rgb" else settings | {"channels": channels}


_STEPS = ("Resize", "CenterCrop", "ToTensor", "Normalize")
_LAB_STEPS = ("Resize", "CenterCrop", "ImgPil2LabTensor")


def _steps(keys: Keys, usual: Sequence[str]) -> dict[str, Any]:
    steps = {split: keys.take(f"DATA.{split}.TRANSFORMS") for split in ("TRAIN", "TEST")}
    if steps["TRAIN"] is None and steps["TEST"] is None:
        return {}
    if steps["TRAIN"] != steps["TEST"]:
        keys.fault("DATA: TRANSFORMS of TRAIN and TEST differ; expected the same for both")
        return {}
    transform: dict[str, Any] = {"resize": None, "crop": None}
    order = [step.get("name") for step in steps["TRAIN"]]
    squash = _squash(steps["TRAIN"])
    if squash is not None:
        steps["TRAIN"], order, transform["squash"] = steps["TRAIN"][:1] + steps["TRAIN"][2:], order[1:], squash
    if order != [name for name in usual if name in order] or not set(usual[2:]) <= set(order):
        keys.fault(f"DATA.TRAIN.TRANSFORMS: {order} is not supported, only {list(usual)}, in that order")
        return {}
    for step in steps["TRAIN"]:
        if step["name"] == "Resize":
            transform["resize"] = step["size"]
            transform["interpolation"] = INTERPOLATIONS.get(step.get("interpolation", 2), step.get("interpolation"))
        elif step["name"] == "CenterCrop":
            transform["crop"] = step["size"]
        elif step["name"] == "Normalize":
            transform |= {"mean": step["mean"], "std": step["std"]}
        elif step["name"] == "ImgPil2LabTensor":
            transform |= {"mean": [0, 0, 0], "std": [1, 1, 1]}
    return transform


def _squash(steps: Sequence[Mapping[str, Any]]) -> list[int] | None:
    """Height and width that a second Resize gives, after the first has given the shorter side alike."""
    if [step.get("name") for step in steps[:2]] != ["Resize", "Resize"]:
        return None
    first, second = steps[:2]
    same = first.get("interpolation", 2) == second.get("interpolation", 2)
    size = second["size"]
    return size if same and isinstance(first["size"], int) and isinstance(size, list) and len(size) == 2 else None


def _extract(keys: Keys) -> dict[str, Any]:
    settings = {}
    sizes = [keys.take(f"DATA.{split}.BATCHSIZE_PER_REPLICA") for split in ("TRAIN", "TEST")]
    workers = keys.take("DATA.NUM_DATALOADER_WORKERS")
    if any(sizes):
        settings["batch_size"] = max(size for size in sizes if size)
    if workers is not None:
        settings["workers"] = workers
    if keys.left.get("MACHINE.DEVICE") == "cpu":
        settings["device"] = "cpu"
    return settings


def _evaluate(keys: Keys) -> dict[str, Any]:
    where = "NEAREST_NEIGHBOR."
    features = keys.take(where + "FEATURES.PATH") or ""
    if features:
        keys.fault(f"{where}FEATURES.PATH: import what VISSL extracted with `bench import --vissl {features}`")
    sigma, topk = keys.take(where + "SIGMA", 0.1), keys.take(where + "TOPK", 200)
    normalize, cuda = keys.take(where + "L2_NORM_FEATS", False), keys.take(where + "USE_CUDA", True)
    # Protocol vissl compares inner products, wu2018 those of rows scaled to unit length; both vote alike.
    knn = {
        "protocol": "wu2018" if normalize else "vissl",
        "k": topk if isinstance(topk, list) else [topk],
        "temperature": [sigma],
    }
    return {"knn": knn} | ({} if cuda else {"device": "cpu"})


_TRANSLATORS: Mapping[str, Callable[[Keys], Any]] = {
    "data": translate_data,
    "transform": _transform,
    "layers": _layers,  # before the trunk's name is taken
    "model": translate_model,
    "weights": _weights,
    "extract": _extract,
    "evaluate": _evaluate,
}
_SECTIONS = {
    "data": "DATA",
    "transform": "DATA.*.TRANSFORMS",
    "model": "MODEL.TRUNK or MODEL.HEAD",
    "weights": "MODEL.WEIGHTS_INIT",
    "layers": "MODEL.FEATURE_EVAL_SETTINGS",
    "extract": "DATA.*.BATCHSIZE_PER_REPLICA",
    "evaluate": "NEAREST_NEIGHBOR",
}
"""The part of VISSL's configuration that each section of a pipeline comes from."""


def current(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Move the content of `TRUNK.TRUNK_PARAMS`, from earlier versions, to where later ones have it."""
    model = config.get("MODEL")
    trunk = model.get("TRUNK") if isinstance(model, Mapping) else None
    if not isinstance(trunk, Mapping) or not isinstance(trunk.get("TRUNK_PARAMS"), Mapping):
        return config
    assert isinstance(model, Mapping)
    rest = {key: value for key, value in trunk.items() if key != "TRUNK_PARAMS"}
    return {**config, "MODEL": {**model, "TRUNK": {**rest, **trunk["TRUNK_PARAMS"]}}}
