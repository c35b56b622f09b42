"""Settings of stage one."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

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
"""Largest side in pixels; a square image of that size takes 0.8 GB as floats."""

Side = Annotated[int, Field(gt=0, le=MAX_SIDE)]


_ONLY_FOR = {
    "dataset": ("torchvision", "huggingface", "layout"),
    "train_list": ("filelist",),
    "val_list": ("filelist",),
    "train_labels": ("filelist",),
    "val_labels": ("filelist", "folder"),
    "splits": ("filelist",),
    "classes": ("filelist", "webdataset"),
    "label_column": ("filelist", "folder", "huggingface"),
    "multi_label": ("filelist",),
    "options": ("torchvision", "huggingface"),
    "decoder": ("folder", "filelist", "webdataset", "huggingface", "torchvision"),
}
"""Settings that only some sources use."""


class DataConfig(Config):
    """Where the images come from."""

    name: str | None = None
    """A data set of the catalogue (see `bench datasets`), which supplies the settings that are not given here."""

    source: Literal["folder", "filelist", "webdataset", "torchvision", "huggingface", "layout", "digits"] = "folder"
    """`folder`: class folders for each split, in a folder, .tar or .zip; `filelist`: files that list paths and labels;
    `webdataset`: tar shards; `torchvision`: one of its data sets, already on disk; `huggingface`: one that its library
    reads; `layout`: a public data set as it is distributed (`bench datasets`); `digits`: scikit-learn's handwritten
    digits, which need no download."""

    root: Path | None = None
    """Folder that holds a folder for each split, and in it one for each class; or a .tar or .zip of it. For other
    sources, the folder of the shards or files, or that paths in lists are relative to."""

    dataset: str | None = None
    """For `torchvision` and `huggingface`: name of the data set, such as CIFAR10; for `layout`, such as cub200."""

    train_split: str = "train"
    """Split to search for neighbours: a folder, or for `webdataset` a pattern such as train-{000..146}.tar; `none` to
    extract queries alone, for `bench evaluate --queries`."""

    val_split: str = "val"
    """Split whose images are classified, likewise."""

    train_list: Path | None = None
    """For `filelist`: .npy, .txt, .csv or .json of paths, perhaps with labels; relative to the root or the working
    folder."""

    val_list: Path | None = None
    """The same for the queries."""

    train_labels: Path | None = None
    """For `filelist`: a second list, of labels, with the same length as the first."""

    val_labels: Path | None = None
    """The same for the queries. For `folder`: labels of a val folder without class folders, as a list of names and
    labels or ImageNet's development kit; ILSVRC2012_devkit_t12 and LOC_val_solution.csv in the root are found."""

    splits: Path | None = None
    """For `filelist`: a list of each image's path and split (`train_split`, `val_split`, or 1 and 0), over one list of
    all images and labels in `train_list`, or over the class folders of the root."""

    classes: Path | None = None
    """For `filelist` and `webdataset`: names of the classes, one a line; numeric labels index them from 0."""

    label_column: str | None = None
    """For `huggingface` and for lists in `.csv`: the column of labels, if it is ambiguous; `none` for no labels."""

    multi_label: bool = False
    """For `filelist`: an image has any number of classes: names such as cat;dog, or a column of 1, 0 or -1 (not known)
    for each class, or COCO's annotations."""

    options: dict[str, Any] = Field(default_factory=dict)
    """For `torchvision` and `huggingface`: keyword arguments of the data set, such as `small: true`."""

    limit: int | None = Field(default=None, gt=0)
    """Most images of each split; they are drawn at random."""

    per_class: int | None = Field(default=None, gt=0)
    """Most images of each class of train; val is not reduced."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the draw."""

    on_error: Literal["stop", "skip"] = "stop"
    """What to do about an image that can't be read; skipped ones are counted, and left out of every evaluation."""

    decoder: Literal["pillow", "torchvision", "simplejpeg"] = "pillow"
    """Decoder of JPEG files. The others are faster; Pillow decodes what they refuse, and other kinds of files."""

    on_class_fault: Literal["stop", "warn"] = "stop"
    """What to do about a class folder without images, classes whose names differ only in case, or a class of val that
    is not in train (so it is never predicted)."""

    @field_validator(*_ONLY_FOR)
    @classmethod
    def _heeded(cls, value: Any, info: Any) -> Any:
        sources, source = _ONLY_FOR[info.field_name], info.data.get("source")
        if value and value != "pillow" and source is not None and source not in sources:
            raise ValueError(f"has no effect with data.source={source}, only with {' or '.join(sources)}")
        return value


IMAGENET_MEAN = (0.485, 0.456, 0.406)


class TransformConfig(Config):
    """What is done to an image before the model sees it; the same for both splits, nothing random."""

    resize: Side | tuple[Side, Side] | None = 256
    """Shorter side, or (height, width), in pixels."""

    crop: Side | tuple[Side, Side] | None = 224
    """Central part, side or (height, width), in pixels."""

    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    """VISSL's benchmark resizes bilinearly, DINO's and DINOv2's bicubically."""

    rounding: Literal["torchvision", "nearest", "floor"] = "torchvision"
    """Rounding of the longer side and of the crop's corner, which moves the crop by up to a pixel. torchvision, and so
    VISSL, DINO and others, truncate the side and round half margins to even; `floor` truncates both, as
    transformers does; `nearest` rounds the side and truncates half margins, as some other pipelines do."""

    mean: tuple[Number, Number, Number] = IMAGENET_MEAN
    """Subtracted from red, green, blue in [0, 1]; ImageNet's."""

    std: tuple[Number, Number, Number] = (0.229, 0.224, 0.225)
    """Divided by afterwards; ImageNet's."""

    channels: Literal["rgb", "bgr", "lab"] = "rgb"
    """Order in which the model gets the channels; some models ported from Caffe take blue first. `lab` gives L* - 50,
    a* and b*, for models of colorization; with it, `mean` and `std` refer to those."""

    squash: Side | tuple[Side, Side] | None = None
    """Side, or height and width, to which the image is resized last, whatever its shape; usually with `crop: null`."""

    @field_validator("channels")
    @classmethod
    def _not_with_the_usual_mean(cls, channels: str, info: ValidationInfo) -> str:
        if channels == "lab" and info.data.get("mean") == IMAGENET_MEAN:
            raise ValueError("lab needs transform.mean and std of L* - 50, a*, b*; VISSL has mean=[0,0,0] std=[1,1,1]")
        return channels

    @field_validator("std")
    @classmethod
    def _positive(cls, std: tuple[float, ...]) -> tuple[float, ...]:
        if any(not value >= 1e-6 for value in std):
            raise ValueError("must be positive, and at least 1e-6")
        return std


class ModelConfig(Config):
    """Which model."""

    trunk: str = "resnet50"
    """A name of `bench models`, `timm:NAME`, or a function of your own that returns a model, `file.py:function` or
    `package.module:function`; its code is run."""

    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of its constructor, such as `depth: 101`."""

    heads: tuple[Head, ...] = ()
    """Heads on top of the trunk, written as in VISSL: `[["mlp", {"dims": [2048, 128]}]]`. The layer `heads` is the
    output of the last one, `heads.0` that of the first."""


class WeightsConfig(Config):
    """Where its parameters come from: one of `file`, `torchvision`, `random_seed` and `as_built`."""

    file: Path | None = None
    """A checkpoint: .pth, .pt, .ckpt, .safetensors, or a folder from Hugging Face's hub. Its format is recognized by
    its keys."""

    torchvision: str | None = None
    """Name of torchvision's own weights, such as IMAGENET1K_V2 or DEFAULT; downloaded once."""

    random_seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    """Untrained weights, random from this seed; every result says so."""

    branch: str | None = None
    """Which encoder of a checkpoint to load, such as `student` for DINO or `key` for MoCo. By default the conventional
    one: teacher, query, online, base."""

    key: str | None = None
    """Location of the state dict in the file, such as `state_dict` or `model.teacher`, if it is not recognized."""

    remove_prefix: str = ""
    """Strip this prefix from names in the file; drop names without it."""

    add_prefix: str = ""
    """Prepend this to all names."""

    ignore: tuple[str, ...] = ()
    """Prefixes of names that may be left over in the file, although the layers use the module."""

    position_grid: tuple[Side, Side] | None = None
    """Grid of patches (height, width) of the file's position embeddings, if it was not trained on square images."""

    trust: bool = False
    """Load a checkpoint that contains more than tensors, which runs code in it."""

    as_built: bool = False
    """Your own function, given as model.trunk, loads them itself."""

    @field_validator("as_built")
    @classmethod
    def _one_source(cls, as_built: bool, info: Any) -> bool:
        given = [key for key in ("file", "torchvision", "random_seed") if info.data.get(key) is not None]
        if len(given) + as_built > 1:
            raise ValueError("give only one of file, torchvision, random_seed and as_built")
        return as_built


class ExtractConfig(Config):
    """How the forward passes are run."""

    batch_size: Annotated[int, Field(gt=0, le=65536)] | Literal["auto"] = 64
    """Images in a forward pass; `auto` measures which number is fastest, once for a feature set."""

    precision: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    """Precision of the forward pass. bfloat16 and float16: by torch's autocast, or by weights in that precision where
    that is measured to be faster and agrees with float32; tf32: products of NVIDIA's GPUs with 10 bits of mantissa."""

    compile: Literal["auto", "off", "on"] = "off"
    """Compile the forward pass with torch.compile; `auto` does where that is measured to be faster and agrees with the
    eager pass. Layers already begun are continued as they were begun."""

    device: str = "auto"
    """Where the model runs, as torch names it, such as cpu or cuda:1; `auto` is the first GPU, or else the CPU."""

    workers: int | None = Field(default=None, ge=0, le=1024)
    """Processes of each rank that decode images; by default the cores divided by the ranks, at most 16."""

    threads: int | None = Field(default=None, gt=0, le=1024)
    """Threads of the forward pass on the CPU, in each rank; by default the number of cores. Not divided by the ranks,
    since the last bit of some models' features depends on it."""

    ranks: int | None = Field(default=None, gt=0, le=1024)
    """Processes on this host that share the work; by default one."""

    gpus: int | None = Field(default=None, gt=0, le=1024)
    """GPUs of this host that share the work, with one rank on each."""

    @field_validator("gpus")
    @classmethod
    def _ranks_or_gpus(cls, gpus: int | None, info: Any) -> int | None:
        if gpus is not None and info.data.get("ranks") not in (None, gpus):
            raise ValueError("give ranks or gpus, not both: each GPU has one rank")
        return gpus

    slurm: dict[str, str | int] | None = None
    """Submit a SLURM job with these parameters, such as partition, nodes, gpus_per_node, time; each task is a rank."""

    @property
    def images_per_batch(self) -> int:
        """The batch size, which must be a number by now."""
        assert self.batch_size != "auto", "the batch size was not measured"
        return self.batch_size

    @property
    def num_ranks(self) -> int:
        """Ranks to start on this host."""
        return self.gpus or self.ranks or 1
