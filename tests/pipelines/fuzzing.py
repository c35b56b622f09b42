"""Random command lines, made of the commands' own options and of values as nobody should give them.

Run by itself, `python -m tests.pipelines.fuzzing FOLDER SEED COUNT` makes a working folder and runs a count of them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import sys
import traceback
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import typer
from PIL import Image

from featbench.__main__ import main
from featbench.pipelines.cli.app import app

SECONDS = 90

NUMBERS = [
    "0",
    "1",
    "-1",
    "3",
    "2147483648",
    "99999999999999999999",
    "-9223372036854775809",
    "1e309",
    "nan",
    "inf",
    "-inf",
    "0.5",
    "1,2",
    "1,,2",
    ",",
    "0x10",
    "1_000",
    "١٢",
    "--1",
    "1e-320",
    "true",
    "null",
    "[]",
    "{}",
    "100%",
    "0%",
    "classes",
]
TEXTS = [
    "",
    " ",
    "a",
    "x" * 5000,
    "\x1b[2J",
    "[/b]",
    "é",
    "e\u0301",
    "\ud800",
    "\u202e",
    "🙂",
    "a\nb",
    "-",
    "--",
    "=",
    "a=b",
    "..",
    "../..",
    "/",
    "~",
    "$HOME",
    "*",
    "%s",
    "{}",
    "'",
    '"',
    "\\",
    "#",
    "&a [*a]",
    "!!python/object:os.system",
    "[" * 300,
    "{a: " * 100,
    "a" + ".a" * 400,
    "null",
    "yes",
    "2001-99-99",
    "9" * 4400,
    "\t",
    "ﬁ",
    "NaN",
    "name: [",
    "- - -",
]
TEXTS_OF = {
    "k": ["1", "3,5", "30", "12"],
    "temperature": ["0.07", "0.1,1", "1e-9", "1e30"],
    "clusters": ["3", "classes", "2,classes", "31"],
    "shots": ["1", "2,50%", "100%", "0%"],
    "tries": ["1", "3"],
    "duplicates": ["0.99", "1", "-0.5"],
    "pca": ["2", "6", "7"],
    "batch_size": ["1", "4"],
    "workers": ["0"],
    "random_weights": ["0", "7"],
    "store": ["features", "s2", "nosuch"],
    "out": ["out1", "out2", "out3", "empty"],
    "image_size": ["32", "64", "0"],
    "images": ["10"],
    "data": ["images", "images", "folder"],
    "layers": [
        "x",
        "y",
        "x,y",
        "nosuch",
        "x:Identity",
        "res4:AvgPool2d(8,3,0)",
        "x:AvgPool2d(0)",
        "a=x",
        "features.3",
        "labels",
    ],
    "protocol": ["dino", "dinov2", "vissl", "mine.yaml", "dino,vissl", "junk.yaml", "solo_euclidean", "nosuch.yaml"],
    "index": [
        "Flat",
        "IVF4,Flat:nprobe=2",
        "IVF99999999,Flat",
        "IVF4,Flat:nprobe=100000000000",
        "PQ3",
        "HNSW",
        "IVF4",
        ":",
        "Flat:",
    ],
    "memory": ["1GiB", "0", "1B", "-1GiB", "1e30GiB", "GiB", "50MiB"],
    "dtype": ["float32", "float16", "int8"],
    "precision": ["float32", "low", "auto", "bfloat16", "float8"],
    "device": ["cpu", "auto", "cuda", "cuda:99", "meta", "cpu:1", "tpu"],
    "search_device": ["cpu", "gpu", "faiss-cpu", "gpu:1"],
    "search_precision": ["auto", "low", "float32"],
    "file_format": ["npy", "npz", "parquet", "vissl", "zarr", "csv"],
    "what": ["features", "neighbours", "predictions", "features,neighbours", "weights", ","],
    "on_error": ["stop", "skip", "go"],
    "slurm": ["partition=gpu", "nodes=x", "=", "time"],
    "name": ["N", "U", "made", "nosuch", "broken", "a/b", ".a"],
    "features": ["N", "U", "nosuch", "broken"],
    "first": ["N", "U"],
    "second": ["N", "U"],
    "layer": ["z", "a=res5", "res5,res4", "valid"],
    "features_key": ["features", "x_train", "x_train,x_test", "a,b,c"],
    "labels_key": ["labels", "y_train", "y_train,y_test"],
    "train_split": ["train", "val"],
    "val_split": ["val", "train"],
    "weights": ["junk.bin", "DEFAULT", "tiny.pth", "empty", "folder", "train.npz"],
}
SETTINGS = [
    "model.trunk=squeezenet1_1",
    "model.trunk=nosuch",
    "model.options={depth: -1}",
    "model.options=3",
    "layers=[features.3]",
    "layers=[]",
    "layers=3",
    "data.limit=0",
    "data.limit=2",
    "data.seed=-1",
    "data.per_class=1",
    "transform.crop=0",
    "transform.mean=[a,b,c]",
    "transform.std=[0,0,0]",
    "weights.random_seed=0",
    "evaluate.knn.k=[0]",
    "evaluate.knn.k=1",
    "evaluate.knn.temperature=-1",
    "evaluate.kmeans.seed=-1",
    "evaluate.knn.seed=-5",
    "storage.dtype=int8",
    "store=s2",
    "name=../x",
    "name=made",
    "nosuch.key=1",
    "data.source=filelist",
    "data.source=torchvision",
    "data.root=junk.bin",
    "data.train_list=junk.bin",
    "evaluate.index=Flat",
    "model.heads=[[mlp,{dims: [x]}]]",
    "model.heads=[[[]]]",
    "storage.rows_per_chunk=0",
    "evaluate.memory=0",
    "data=3",
    "model=null",
    "evaluate=[]",
    "extract.batch_size=0",
    "config.MODEL.TRUNK.NAME=x",
    "+config.DATA=3",
    "data.options={download: true}",
    "data.name=cifar10",
    "data.name=3",
]
PLACES = [
    "images",
    "train.npz",
    "val.npz",
    "both.npz",
    "objects.npz",
    "junk.bin",
    "empty",
    "pipe",
    "folder",
    "nosuch",
    "shards",
    "dino",
    "tiny.yaml",
    "vissl.yaml",
    "bomb.yaml",
    "junk.yaml",
    "list.txt",
    "train.csv",
    "train.pt",
    "features",
    "/dev/null",
    "/dev/zero",
    "/proc/self/mem",
    "a" * 300,
    "",
    "loop",
    "features/N/zarr.json",
    "names.txt",
    "mine.yaml",
    "N",
]


class TooLong(BaseException):
    """A command that has not ended in time."""


@dataclass
class Outcome:
    """What came of one command line."""

    argv: list[str]
    code: object = None
    out: str = ""
    err: str = ""
    faults: list[str] = field(default_factory=list)


def make_workspace(folder: Path) -> None:
    """Small files of each kind that a command may be given, and of each kind that it should not."""
    rng = np.random.default_rng(0)
    values = {s: rng.normal(size=(n, 6)).astype(np.float32) for s, n in (("train", 30), ("val", 12))}
    labels = {s: np.arange(len(v)) % 3 for s, v in values.items()}
    for split in values:
        np.savez(folder / f"{split}.npz", features=values[split], labels=labels[split])
        for row in range(3):
            for name in ("a", "b"):
                (folder / f"images/{split}/{name}").mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"images/{split}/{name}/{row}.png")
    both = {
        f"{a}_{b}": c[s] for s, b in (("train", "train"), ("val", "test")) for a, c in (("x", values), ("y", labels))
    }
    np.savez(folder / "both.npz", **both)
    np.savez(folder / "objects.npz", features=np.array([None, {}], object), labels=np.array([[0, 1]]))
    torch.save(
        {"features": torch.tensor(values["train"]), "labels": torch.tensor(labels["train"])}, folder / "train.pt"
    )
    torch.save({"w": torch.zeros(2, 2)}, folder / "tiny.pth")
    np.savetxt(folder / "train.csv", values["train"], delimiter=",")
    for name in ("shards", "dino", "folder", "empty folder"):
        (folder / name).mkdir()
    for split, name in (("train", "train"), ("val", "test")):
        for kind, array in (("features", values), ("targets", labels)):
            np.save(folder / f"shards/rank0_chunk0_{name}_res5_{kind}.npy", array[split])
            torch.save(
                torch.tensor(array[split]), folder / f"dino/{name}{'feat' if kind == 'features' else 'labels'}.pth"
            )
        np.save(folder / f"shards/rank0_chunk0_{name}_res5_inds.npy", np.arange(len(values[split])))
    (folder / "junk.bin").write_bytes(rng.bytes(500))
    (folder / "junk.yaml").write_bytes(rng.bytes(100))
    (folder / "empty").write_bytes(b"")
    (folder / "list.txt").write_text("images/train/a/0.png 0\nnosuch.png 1\n")
    (folder / "names.txt").write_text("a\nb\n")
    (folder / "bomb.yaml").write_text("a: &a [1,1,1]\n" + "".join(f"k{i}: &k{i} [{'*a,' * 9}*a]\n" for i in range(9)))
    (folder / "mine.yaml").write_text("mine: {like: dino, k: [1, 2]}\n")
    (folder / "vissl.yaml").write_text("config: {MODEL: {TRUNK: {NAME: resnet}}, DATA: {TRAIN: {TRANSFORMS: 3}}}\n")
    tiny = (
        "name: tiny\nmodel: {trunk: squeezenet1_1}\nweights: {random_seed: 0}\nlayers: [features.3]\n"
        "data: {root: images}\ntransform: {resize: 32, crop: 32}\nextract: {workers: 0, batch_size: 4}\n"
    )
    for name in ("tiny.yaml", "bench.yaml"):
        (folder / name).write_text(tiny)
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    (folder / "features/broken").mkdir(parents=True)
    (folder / "features/broken/zarr.json").write_text("{")
    for name, extra in (("N", []), ("U", ["--unlabelled"])):
        for layer in ("x", "y"):
            done = run(["import", "--train", "train.npz", "--val", "val.npz", "--name", name, "--layer", layer, *extra])
            assert done.code == 0, done.err


COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def command_line(chance: random.Random) -> list[str]:
    """One command with some of its options, in any order, some of them twice."""
    if chance.random() < 0.03:
        return [chance.choice(["", "nosuch", "--help", "-", "--version", *TEXTS])]
    name = chance.choice(sorted(COMMANDS))
    command = COMMANDS[name]
    words: list[list[str]] = []
    options = [param for param in command.params if param.param_type_name == "option" and param.name != "help"]
    for option in chance.choices(options, k=chance.choice([0, 0, 1, 1, 2, 3, 5])) if options else []:
        flag = chance.choice(option.opts)
        if option.is_flag:
            words.append([flag])
        elif chance.random() < 0.02:
            words.append([flag])  # without its value
        else:
            words.append([flag, _value(chance, option)])
    for argument in (param for param in command.params if param.param_type_name == "argument"):
        many = argument.nargs == -1
        words += [[_word(chance, name, argument)] for _ in range(chance.choice([0, 0, 1, 1, 2]) if many else 1)]
    if chance.random() < 0.5 and name in ("extract", "run", "plan"):
        words.insert(0, ["tiny.yaml"])
    elif chance.random() < 0.7 and name == "evaluate":
        words.append(["--features", chance.choice(["N", "N", "U"])])
    elif name == "import" and chance.random() < 0.7:
        words += [
            ["--name", "made"],
            *chance.choice(
                [
                    [["--train", "train.npz"], ["--val", "val.npz"]],
                    [["--vissl", "shards"]],
                    [["--dino", "dino"]],
                    [["--train", "both.npz"]],
                ]
            ),
        ]
    elif name == "compare" and chance.random() < 0.5:
        words += [["N"], ["N"], ["--layers", "x,y"]]
    if name in ("extract", "run", "plan"):
        chance.shuffle(words) if chance.random() < 0.3 else None
        words = [word for word in words if not _is_costly(word)]
        if name == "plan":
            words.append(["--probe", "0"])
    return [name, *(part for word in words for part in word)]


def _is_costly(word: list[str]) -> bool:
    """Many processes, or a pipeline that is shipped, whose model is a large one."""
    if word[0] in ("--ranks", "--gpus", "--workers", "--slurm") and len(word) == 2:
        with contextlib.suppress(ValueError):
            return float(word[1]) >= 1
        return word[0] == "--slurm"
    return False


def _value(chance: random.Random, option: object) -> str:
    own = TEXTS_OF.get(option.name, [])  # type: ignore[attr-defined]
    kind = str(option.type_descriptor.annotation)  # type: ignore[attr-defined]
    if own and chance.random() < 0.75:
        return chance.choice(own)
    if "Path" in kind and chance.random() < 0.8:
        return chance.choice(PLACES)
    if "str" not in kind and chance.random() < 0.8:
        return chance.choice(NUMBERS)
    return chance.choice([*NUMBERS, *TEXTS, *PLACES])


def _word(chance: random.Random, command: str, argument: object) -> str:
    draw = chance.random()
    name = argument.name  # type: ignore[attr-defined]
    if name in TEXTS_OF and draw < 0.85:
        return chance.choice(TEXTS_OF[name])
    if name == "words" and command in ("extract", "run", "plan", "evaluate", "layers") and draw < 0.6:
        return chance.choice(SETTINGS)
    if draw < 0.8:
        return chance.choice(["squeezenet1_1", "N", "vissl.yaml", "bomb.yaml", "diff", "dino", "vissl", *PLACES])
    return chance.choice([*TEXTS, *NUMBERS])


def run(argv: list[str]) -> Outcome:
    """Run one command line in this process, and say what is wrong with how it ended."""
    outcome = Outcome(argv)
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    before = sys.argv, sys.stdout, sys.stderr

    def stop(*_: object) -> None:
        raise TooLong

    handler = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        sys.argv, sys.stdout, sys.stderr = ["bench", *argv], out, err
        main()
        outcome.code = 0
    except SystemExit as ended:
        outcome.code = ended.code or 0
    except TooLong:
        outcome.faults.append(f"did not end in {SECONDS} s:\n{traceback.format_exc()[-1500:]}")
    except BaseException:
        outcome.faults.append(traceback.format_exc()[-3000:])
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        sys.argv, sys.stdout, sys.stderr = before
    outcome.out, outcome.err = (stream.buffer.getvalue().decode() for stream in (out, err))
    outcome.faults += _faults(outcome)
    return outcome


def _faults(outcome: Outcome) -> list[str]:
    faults = []
    if outcome.code not in (0, 2):
        faults.append(f"ended with {outcome.code!r}")
    if "Traceback" in outcome.err or ("Error:" in outcome.err and "Usage" not in outcome.err and outcome.code == 1):
        faults.append("a traceback")
    if outcome.code == 2 and not outcome.err.strip() and not outcome.out.strip():
        faults.append("no message")
    if len(outcome.err) > 60_000:
        faults.append(f"a message of {len(outcome.err)} characters")
    for text in (outcome.out, outcome.err):
        acting = {c for c in text if (unicodedata.category(c) == "Cc" and c not in "\n\t") or c in "\u202e\u2066\ud800"}
        if acting:
            faults.append(f"control characters {sorted(acting)}")
    if outcome.code == 0 and "--json" in outcome.argv and "--help" not in outcome.argv and outcome.out.strip():
        try:
            json.loads(outcome.out)
        except ValueError:
            faults.append("not JSON")
    return faults


def fuzz(seed: int, count: int) -> tuple[list[Outcome], Counter[str]]:
    """Run a count of command lines in the working folder; returns those with faults, and how the others ended."""
    chance = random.Random(seed)
    bad, ended = [], Counter[str]()
    for _ in range(count):
        outcome = run(command_line(chance))
        ended[f"{outcome.argv[0] if outcome.argv[0] in COMMANDS else 'other'} {outcome.code}"] += 1
        if outcome.faults:
            bad.append(outcome)
    return bad, ended


if __name__ == "__main__":
    where, first_seed, number = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    is_new = not where.exists()
    where.mkdir(parents=True, exist_ok=True)
    os.chdir(where)
    if is_new:
        make_workspace(Path())
    total = Counter[str]()
    for start in range(0, number, 20):
        found, counts = fuzz(1000 * first_seed + start, min(20, number - start))
        total += counts
        for each in found:
            argv = [word[:200] for word in each.argv]
            print("=" * 100, "\n", argv, "\n", "\n".join(each.faults), "\n", each.err[-600:])
        print(dict(sorted(total.items())), f"{len(found)} with faults", flush=True)
