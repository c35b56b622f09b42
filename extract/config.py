"""Settings of stage one."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from featbench.store.config import Config


def _fraction(value: Any) -> Any:
    """Let a number be written as a fraction, such as 123/255."""
    if isinstance(value, str):
        try:
            return float(Fraction(value.replace(" ", "")))
        except (ValueError, ZeroDivisionError):
            return value
    return value


Number = Annotated[
    float, BeforeValidator(_fraction, json_schema_input_type=float | str), Field(ge=-1e6, le=1e6, allow_inf_nan=False)
]


def _head(value: Any) -> Any:
    """Let a head without parameters be written as its name alone."""
    return (value, {}) if isinstance(value, str) else value


Head = Annotated[
    tuple[str, dict[str, Any]], BeforeValidator(_head, json_schema_input_type=str | tuple[str, dict[str, Any]])
]
MAX_SIDE = 8192
"""Pixels of a side; an image of that size takes 0.8 GB as floats."""

Side = Annotated[int, Field(gt=0, le=MAX_SIDE)]


_ONLY_FOR = {
    "dataset": ("torchvision", "huggingface"),
    "train_list": ("filelist",),
    "val_list": ("filelist",),
    "train_labels": ("filelist",),
    "val_labels": ("filelist", "folder"),
    "classes": ("filelist", "webdataset"),
    "label_column": ("filelist", "folder", "huggingface"),
    "options": ("torchvision", "huggingface"),
}
"""Settings that only some sources heed."""


class DataConfig(Config):
    """Where the images come from."""

    name: str | None = None
    """A data set of the catalogue (`bench datasets` lists it), which gives what is not given here."""

    source: Literal["folder", "filelist", "webdataset", "torchvision", "huggingface", "digits"] = "folder"
    """`folder` is a folder (or a .tar or .zip of it) of class folders for each split; `filelist` files that list paths
    and labels; `webdataset` tar shards; `torchvision` one of its data sets, already on disk; `huggingface` one that
    its library reads; `digits` scikit-learn's handwritten digits, which come with it."""

    root: Path | None = None
    """The folder that holds the splits' folders, the shards, torchvision's files, or what lists are relative to."""

    dataset: str | None = None
    """For `torchvision` and `huggingface`: the name of the data set, such as CIFAR10."""

    train_split: str = "train"
    """Name of the split that is the database: a folder, or for `webdataset` a pattern such as train-{000..146}.tar."""

    val_split: str = "val"
    """Name of the split whose images are the queries."""

    train_list: Path | None = None
    """For `filelist`: .npy, .txt, .csv or .json of paths, perhaps with labels; relative to the root or the working
    folder."""

    val_list: Path | None = None
    """The same of the queries."""

    train_labels: Path | None = None
    """For `filelist`: a second list, of labels, as long as the first."""

    val_labels: Path | None = None
    """The same of the queries. For `folder`: labels of a val folder without class folders, a list of names and labels
    or ImageNet's development kit; ILSVRC2012_devkit_t12 and LOC_val_solution.csv in the root are found."""

    classes: Path | None = None
    """For `filelist` and `webdataset`: names of the classes that numbers count from 0, one a line."""

    label_column: str | None = None
    """For `huggingface` and for lists in `.csv`: the column of labels, where it is not clear; `none` is no labels."""

    options: dict[str, Any] = Field(default_factory=dict)
    """For `torchvision` and `huggingface`: keyword arguments of the data set, such as `small: true`."""

    limit: int | None = Field(default=None, gt=0)
    """At most so many images of each split, drawn at random."""

    per_class: int | None = Field(default=None, gt=0)
    """At most so many images of each class of train; val stays whole."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of the drawing."""

    on_error: Literal["stop", "skip"] = "stop"
    """An image that can't be read stops the run, or is counted and left out of every evaluation."""

    on_class_fault: Literal["stop", "warn"] = "stop"
    """A class folder without images, classes whose names differ in case alone, or a class of val that train lacks
    (and so can never be right)."""

    @field_validator(*_ONLY_FOR)
    @classmethod
    def _heeded(cls, value: Any, info: Any) -> Any:
        sources, source = _ONLY_FOR[info.field_name], info.data.get("source")
        if value and source is not None and source not in sources:
            raise ValueError(f"has no effect with data.source={source}, only with {' or '.join(sources)}")
        return value


class TransformConfig(Config):
    """What is done to an image before the model sees it; the same for both splits, nothing random."""

    resize: Side | tuple[Side, Side] | None = 256
    """Shorter side, or (height, width), in pixels."""

    crop: Side | tuple[Side, Side] | None = 224
    """Central part, side or (height, width), in pixels."""

    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    """VISSL's benchmark resizes bilinearly, DINO's and DINOv2's bicubically."""

    rounding: Literal["torchvision", "nearest"] = "torchvision"
    """Of the longer side and of the crop's corner, which decides where the crop lies by up to a pixel. torchvision,
    and so VISSL, DINO and the others, cut off the fraction of the side and round half margins to even; `nearest`
    rounds the side and cuts off half margins, as some other pipelines do."""

    mean: tuple[Number, Number, Number] = (0.485, 0.456, 0.406)
    """Subtracted from red, green, blue in [0, 1]; ImageNet's."""

    std: tuple[Number, Number, Number] = (0.229, 0.224, 0.225)
    """Divided by afterwards; ImageNet's."""

    @field_validator("std")
    @classmethod
    def _positive(cls, std: tuple[float, ...]) -> tuple[float, ...]:
        if any(not value >= 1e-6 for value in std):
            raise ValueError("must be positive, and at least 1e-6")
        return std


class ModelConfig(Config):
    """Which model."""

    trunk: str = "resnet50"
    """A name of `bench models`, `timm:NAME`, or a function of one's own that returns a model, `file.py:function` or
    `package.module:function`; its code is run."""

    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of its constructor, such as `depth: 101`."""

    heads: tuple[Head, ...] = ()
    """Heads on top of the trunk, as VISSL writes them: `[["mlp", {"dims": [2048, 128]}]]`. The layer `heads` is the
    output of the last one, `heads.0` that of the first."""


class WeightsConfig(Config):
    """Where its parameters come from: one of `file`, `torchvision`, `random_seed` and `as_built`."""

    file: Path | None = None
    """A checkpoint: .pth, .pt, .ckpt, .safetensors, or a folder from Hugging Face's hub. How it is written is told
    by its own keys."""

    torchvision: str | None = None
    """Name of torchvision's own weights, such as IMAGENET1K_V2 or DEFAULT; downloaded once."""

    random_seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    """No training: random parameters from this seed. Every result says so."""

    branch: str | None = None
    """Which of the encoders of a checkpoint, such as `student` of DINO's or `key` of MoCo's. By default the one that
    is evaluated by custom: teacher, query, online, base."""

    key: str | None = None
    """Told by hand: where the state dict lies within the file, such as `state_dict` or `model.teacher`."""

    remove_prefix: str = ""
    """Told by hand: taken off the names of the file that begin with it; the other names are left out."""

    add_prefix: str = ""
    """Told by hand: put before all names."""

    ignore: tuple[str, ...] = ()
    """Beginnings of names that the file may have beyond the model's, where layers are computed."""

    position_grid: tuple[Side, Side] | None = None
    """Patches in height and width for which the file has position embeddings, where it was not trained on squares."""

    trust: bool = False
    """Load a file that needs more than plain tensors, which executes code that it carries."""

    as_built: bool = False
    """A function of one's own has loaded them itself."""

    @field_validator("as_built")
    @classmethod
    def _one_source(cls, as_built: bool, info: Any) -> bool:
        given = [key for key in ("file", "torchvision", "random_seed") if info.data.get(key) is not None]
        if len(given) + as_built > 1:
            raise ValueError("give only one of file, torchvision, random_seed and as_built")
        return as_built


class ExtractConfig(Config):
    """How the forward passes are run."""

    batch_size: int = Field(default=64, gt=0, le=65536)
    """Images in a forward pass."""

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the forward pass; the lower ones by torch's autocast."""

    device: str = "auto"
    """`auto` is the first GPU, or the CPU; or as torch names it: cpu, cuda, cuda:1."""

    workers: int | None = Field(default=None, ge=0, le=1024)
    """Processes of each rank that decode images; by default the cores, shared among the ranks of a host, at most 16,
    and none for images already in memory."""

    threads: int | None = Field(default=None, gt=0, le=1024)
    """Of the forward pass on the CPU, in each rank; by default as many as there are cores. Not divided among the ranks,
    since with some models the last bit depends on it."""

    ranks: int | None = Field(default=None, gt=0, le=1024)
    """Processes to extract in, on this host; by default this one alone."""

    gpus: int | None = Field(default=None, gt=0, le=1024)
    """GPUs of this host to extract on, with one rank for each."""

    @field_validator("gpus")
    @classmethod
    def _ranks_or_gpus(cls, gpus: int | None, info: Any) -> int | None:
        if gpus is not None and info.data.get("ranks") not in (None, gpus):
            raise ValueError("give ranks or gpus, not both: each GPU has one rank")
        return gpus

    slurm: dict[str, str | int] | None = None
    """Parameters of a SLURM job to extract in, such as partition, nodes, gpus_per_node, time. Each task is a rank."""

    @property
    def num_ranks(self) -> int:
        """Ranks to start on this host."""
        return self.gpus or self.ranks or 1
