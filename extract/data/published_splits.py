"""Data sets whose splits or classes are in lists beside them: EuroSAT, RESISC45, UC Merced, Caltech-101, ObjectNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featbench.extract.data.folders import DiskTree
from featbench.extract.data.split import Split, class_folders, lines_of
from featbench.extract.errors import DataError
from featbench.store import abbreviate
from featbench.store.documents import DocumentError, parse_json


def by_lists(root: Path, split: str, *, stem: str, tops: Sequence[str], coop: str = "") -> Split:
    """Class folders with one of the published divisions beside them.

    They are `STEM-train.txt`, `-val` and `-test` of Google's remote_sensing_representations and torchgeo (a file's name
    in each line), and `split_zhou_NAME.json` of CoOp (all three splits, with paths, numbers and names of classes).
    """
    top = next((name for name in tops if (root / name).is_dir()), "")
    text, json = root / f"{stem}-{split}.txt", root / f"split_zhou_{coop}.json"
    there = [file for file in (text, json) if file.is_file()]
    if len(there) == 1:
        return _of_text(root, top, text) if there == [text] else _of_coop(top, json, split)
    known = [text.name, *([json.name] if coop else [])]
    if there:
        raise DataError(f"{root}: has both {' and '.join(known)}, which are different splits. Move one of them away")
    raise DataError(
        f"{root}: expected {' or '.join(known)} there, which says what belongs to the split {split!r}. With another "
        f"list: data.source=filelist data.root={root / top} data.splits=LIST, with lines of a path and a split"
    )


def _of_text(root: Path, top: str, file: Path) -> Split:
    found = class_folders(root, [top])
    of_stem = {Path(path).stem: row for row, path in enumerate(found.paths)}
    if len(of_stem) < len(found.paths):
        raise DataError(
            f"{root / top}: some images of different folders have the same name, so {file.name} is ambiguous"
        )
    wanted = [Path(words[0]).stem for words in lines_of(file)]
    missing = [name for name in wanted if name not in of_stem]
    if missing:
        raise DataError(
            f"{file}: {len(missing):,} of its {len(wanted):,} images are not in {root / top}: {abbreviate(missing)}"
        )
    rows = [of_stem[name] for name in wanted]
    return Split(
        paths=[found.paths[row] for row in rows],
        labels=[found.labels[row] for row in rows],
        files=(file,),
        classes=tuple(sorted(set(found.labels))),
    )


def _of_coop(top: str, file: Path, split: str) -> Split:
    content = _object(file)
    try:
        rows = [(str(path), str(name)) for path, _, name in content[split]]
        names = {int(number): str(name) for each in content.values() for _, number, name in each}
    except KeyError:
        raise DataError(f"{file}: has no split {split!r}; it has {abbreviate(list(content))}") from None
    except (TypeError, ValueError) as error:
        raise DataError(f"{file}: expected a path, a number and a name of a class for each image ({error})") from error
    prefix = f"{top}/" if top else ""
    return Split(
        paths=[prefix + path for path, _ in rows],
        labels=[name for _, name in rows],
        files=(file,),
        classes=tuple(names[number] for number in sorted(names)),
    )


_MAPPINGS = ("folder_to_objectnet_label.json", "objectnet_to_imagenet_1k.json", "pytorch_to_imagenet_2012_id.json",
             "imagenet_to_label_2012_v2")  # fmt: skip


def objectnet(root: Path, split: str) -> Split:
    """ObjectNet: the classes that it shares with ImageNet, whose train is searched.

    Where several of ImageNet's classes are one of ObjectNet's, they are one class in both splits. ObjectNet's other
    classes are left out. Its own mappings say all of this.
    """
    top = "objectnet-1.0" if (root / "objectnet-1.0").is_dir() else ""
    folder = next((path for path in (root / top / "mappings", root / top) if (path / _MAPPINGS[0]).is_file()), None)
    if folder is None:
        raise DataError(f"{root}: expected objectnet-1.0/mappings/{_MAPPINGS[0]} there")
    files = tuple(folder / name for name in _MAPPINGS)
    folders = {label: name for name, label in _object(files[0]).items()}
    shared, numbers = _object(files[1]), {value: int(key) for key, value in _object(files[2]).items()}
    lines = [" ".join(words) for words in lines_of(files[3])]
    wnids = sorted(DiskTree(root).children("train")[0])
    if len(wnids) != len(numbers):
        raise DataError(
            f"{root}: train has {len(wnids):,} classes, {files[2].name} {len(numbers):,}; it must be ImageNet's"
        )
    try:
        number_of = {text: numbers[line] for line, text in enumerate(lines) if line in numbers}
        of_wnid = {
            wnids[number_of[text]]: folders[label] for label, texts in shared.items() for text in texts.split("; ")
        }
    except (KeyError, IndexError, AttributeError) as error:
        raise DataError(f"{folder}: its files contradict each other: {error} of one is not in another") from error
    if split == "train":
        found = class_folders(root, [split])
        return Split(paths=found.paths, labels=[of_wnid.get(name, name) for name in found.labels], files=files)
    ours = set(of_wnid.values())
    found = class_folders(root, [f"{top}/images".lstrip("/")])
    rows = [row for row, name in enumerate(found.labels) if name in ours]
    return Split(paths=[found.paths[row] for row in rows], labels=[found.labels[row] for row in rows], files=files)


def _object(file: Path) -> Mapping[str, Any]:
    try:
        content = parse_json(file.read_bytes(), where=file.name)
    except (OSError, DocumentError, ValueError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: holds a {type(content).__name__}; expected a JSON object")
    return content
