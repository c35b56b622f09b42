"""A feature set: one model's features of one dataset.

Created by `featbench.store.creation`, written by `featbench.store.writer`, read by `featbench.store.reader`;
`featbench.store.paths` has the names of its files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from featbench.store import paths, schema
from featbench.store.checked import checked_numbers, checked_rows, is_plain, open_checked
from featbench.store.durable import cannot_write, sweep_partials, write_durably
from featbench.store.errors import (
    DamagedError,
    IncompleteError,
    MismatchError,
    NotFoundError,
    StoreError,
    UnknownNameError,
    suggest,
)
from featbench.store.folder import Folder
from featbench.store.journal import THREADS, Journal, JournalReader
from featbench.store.layers import LayerSpec
from featbench.store.layout import Grid
from featbench.store.lock import RunLock, join_run
from featbench.store.manifest import ATTRIBUTE, REWRITE, LayerInfo, Manifest, SplitInfo, differences
from featbench.store.pending import PendingChunks
from featbench.store.reader import LayerReader
from featbench.store.records import ChunkRecords, ChunkTable, Record, Records
from featbench.store.regular import read_regular
from featbench.store.typing import Array, Bools, Int8s, Ints, UInt64s
from featbench.store.work import Work

logger = logging.getLogger(__name__)


class FeatureSet:
    """One feature set on disk; opening it only reads the manifest."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._held: Folder | None = None
        self._mark: tuple[int, int, int] | None = None
        self._lock: RunLock | None = None

    @classmethod
    def open(cls, path: Path) -> FeatureSet:
        """Open an existing feature set.

        Raises
        ------
        StoreError
            If it does not exist, is not a feature set, or has a newer format.
        DamagedError
            If the manifest is damaged.
        """
        if not path.is_dir():
            raise NotFoundError(f"{path}: no such feature set. {_where_else(path)}")
        try:
            content = read_regular(path / paths.METADATA)
        except FileNotFoundError:
            if (path / paths.METADATA_COPY).exists():
                raise DamagedError(f"{path}/{paths.METADATA}: missing. {REWRITE}") from None
            raise StoreError(f"{path}: not a feature set: it has no {paths.METADATA}") from None
        except OSError as error:
            raise DamagedError(f"{path}/{paths.METADATA}: cannot be read ({error.strerror}). {REWRITE}") from error
        return cls(path, Manifest.read(content, where=str(path)))

    @contextmanager
    def lock(self, run: str | None = None) -> Iterator[RunLock]:
        """Join a run as one of its processes, or by default be the only writer; see `featbench.store.lock`.

        Raises
        ------
        MismatchError
            If another run has replaced the feature set since it was opened.
        StoreError
            If another run is writing to it, or the feature set no longer exists.
        """
        self._held = None
        self.folder  # noqa: B018 (open from here on)
        if not self.journals.is_dir():
            raise DamagedError(
                f"{self.path}: it has no folder {paths.JOURNALS!r}, so which chunks count is not known. Create it with "
                f"`bench verify {self.path} --repair`; then all chunks are extracted again. Or replace it: --overwrite."
            )
        with join_run(self.path / paths.LOCK, run or uuid.uuid4().hex) as lock:
            self._lock = lock
            try:
                self.reload()
                yield lock
            finally:
                self._lock = None

    @property
    def folder(self) -> Folder:
        """The open folder: writes go into it even if its path refers to something else later."""
        if self._held is None:
            self._held = Folder(self.path)
        return self._held

    def reload(self) -> None:
        """Read manifest and journals again, from the open folder; for writing.

        Raises
        ------
        MismatchError
            If it is no longer the feature set that was opened.
        """
        self._read_manifest()
        self.reread()
        self.check()

    def _read_manifest(self) -> None:
        mark = self.folder.mark(paths.METADATA)
        content = self.folder.read(paths.METADATA)
        if content is None:
            raise DamagedError(f"{self.path}/{paths.METADATA}: missing. {REWRITE}")
        found = Manifest.read(content, where=str(self.path))
        if found.fingerprint != self.manifest.fingerprint:
            raise MismatchError(
                f"{self.path} was replaced while this run was starting or writing:\n  "
                + "\n  ".join(differences(found, self.manifest))
                + "\nNothing has been written to it since. Choose another --name, or run the same command again."
            )
        self.manifest, self._mark = found, mark

    def check(self) -> None:
        """Make sure that the path still refers to the feature set that is written to.

        Raises
        ------
        StoreError
            If the folder, its lock or its manifest was renamed, removed or replaced.
        """
        if self._held is None:
            return
        if not self._held.is_here() or not (self._lock is None or self._lock.is_current()):
            raise StoreError(
                f"{self.path}: this folder, or the lock in it, was renamed, removed or replaced while this run was "
                f"writing to it, so the run stops. Nothing was written into what is there now. If the folder was "
                f"renamed, what was committed is in it, and safe: run the same command with its new --name to go on."
            )
        if (
            self._mark is not None and self._held.mark(paths.METADATA) != self._mark
        ):  # another rank may have added layers
            self._read_manifest()

    def mark(self, work: Work) -> None:
        """Tell the other ranks of the run, if there can be any, that a chunk is about to be journalled.

        Raises
        ------
        StoreError
            If writing fails.
        """
        if self._lock is not None and not self._lock.is_first:
            try:
                self._lock.mark_chunk(self.chunk_number(work.split, work.chunk))
            except OSError as error:
                raise StoreError(cannot_write(self.path / paths.LOCK, error)) from error

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the open folder, which another process opens itself."""
        return {"path": self.path, "manifest": self.manifest, "_held": None, "_mark": None, "_lock": None}

    def sweep(self) -> int:
        """Remove half-written files of killed runs, and return how many; call it under the lock.

        Recent files of stage two are not removed, since an evaluation may be writing them.
        """
        folders = [self.journals, *(self.path / split for split in self.manifest.splits)]
        of_stage_two = [self.path / kind for kind in (*paths.CACHES, paths.RESULTS)]
        return sum(map(sweep_partials, folders)) + sum(
            sweep_partials(folder, older_than=time.time() - 3600) for folder in of_stage_two
        )

    # ---------------------------------------------------------------- contents

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def journals(self) -> Path:
        return self.path / paths.JOURNALS

    def journal(self, rank: int) -> Journal:
        """Open one rank's journal for appending."""
        return Journal(self.folder, paths.journal_key(rank))

    def grid(self, split: str, array: str = "") -> Grid:
        """How the rows of a split are divided into chunks: of a layer, or of `labels` and `paths`."""
        self.split(split)
        return schema.grid_of(self.manifest, split, array)

    def split(self, split: str) -> SplitInfo:
        """Return the manifest's entry of a split."""
        if split not in self.manifest.splits:
            raise UnknownNameError(f"{self.path}: no split {split!r}. {suggest(split, self.manifest.splits)}")
        return self.manifest.splits[split]

    def layer_info(self, name: str) -> LayerInfo:
        """Return the manifest's entry of a layer."""
        if name not in self.manifest.layers:
            have = self.manifest.layers
            raise UnknownNameError(
                f"{self.path}: no layer {name!r}. {suggest(name, have) if have else 'It has none yet.'} "
                f"Add one with `bench extract ... --layers {name}`."
            )
        return self.manifest.layers[name]

    def find_layers(self, specs: Sequence[str]) -> list[str]:
        """Resolve layers, given by name or as tap and pooling, to names, each once; all layers if none is given."""
        if not self.manifest.layers:
            raise StoreError(f"{self.path}: it has no layers yet; extract some with `bench extract ... --layers ...`")
        names = [spec if spec in self.manifest.layers else LayerSpec.of(spec).name for spec in specs]
        for name in names:
            self.layer_info(name)
        return list(dict.fromkeys(names or self.manifest.layers))

    def labels(self, split: str) -> Ints:
        """Labels of a split, shape (N,), -1 where there is none; where rows have several, see `label_matrix`."""
        if self.split(split).is_multi_label:
            return np.full(self.split(split).num_rows, -1, np.int64)
        labels = self._small_array(split, paths.LABELS).astype(np.int64)
        self._check_labels(split, labels)
        return labels

    def num_unlabelled(self, split: str) -> int:
        """Number of rows without a label, counted without holding all labels."""
        count, array = 0, self._open(split, paths.LABELS)
        for chunk, record in enumerate(self._complete(split, paths.LABELS)):
            labels = self._read_chunk(array, record, split, paths.LABELS, chunk)
            self._check_labels(split, labels)
            count += int((labels < 0).sum())
        return count

    def _check_labels(self, split: str, labels: Ints) -> None:
        num_classes = len(self.split(split).class_names)
        if len(labels) and not (labels.min() >= -1 and labels.max() < num_classes):
            raise DamagedError(
                f"{self.path}: {split}/labels holds labels that are not in [-1, {num_classes}). {REWRITE}"
            )

    def label_matrix(self, split: str) -> Int8s:
        """Labels of rows with any number of classes, shape (N, C): 1, 0, or -1 where it is not known."""
        if not self.split(split).is_multi_label:
            raise StoreError(f"{self.path}: rows of {split} have one class each")
        labels = self._small_array(split, paths.LABELS)
        if labels.min(initial=0) < -1 or labels.max(initial=0) > 1:
            raise DamagedError(f"{self.path}: {split}/labels holds other numbers than 1, 0 and -1. {REWRITE}")
        return labels.astype(np.int8)

    def paths(self, split: str) -> list[str]:
        """What the user calls each image of a split."""
        return [str(path) for path in self._small_array(split, paths.PATHS)]

    def valid(self, split: str) -> Bools:
        """Shape (N,): False where the image could not be read."""
        return self._small_array(split, paths.VALID).astype(np.bool_)

    def valid_chunk(self, split: str, chunk: int) -> Bools:
        """Return `valid` for the rows of one chunk, which must have been written."""
        return self._chunk(split, paths.VALID, chunk).astype(np.bool_)

    def has_digests(self, split: str) -> bool:
        """Whether digests of images are stored; feature sets of older versions and imported ones have none."""
        return self.manifest.has_digests(split)

    def digests_chunk(self, split: str, chunk: int) -> UInt64s:
        """Digests of the images of one chunk, which must have been written; 0 where an image could not be read."""
        return self._chunk(split, paths.DIGESTS, chunk).astype(np.uint64)

    def written_digests(self, split: str) -> UInt64s:
        """Digests of the images of a split, shape (N,); 0 where none is stored."""
        digests = np.zeros(self.split(split).num_rows, np.uint64)
        for chunk in np.flatnonzero(self.is_committed(split, paths.DIGESTS)) if self.has_digests(split) else ():
            rows = self.grid(split).rows(int(chunk))
            digests[rows.start : rows.stop] = self.digests_chunk(split, int(chunk))
        return digests

    def row_arrays(self, split: str) -> tuple[str, ...]:
        """Names of the arrays of a split that are not layers."""
        return schema.row_arrays(self.manifest, split)

    def flag_arrays(self, split: str) -> tuple[str, ...]:
        """Names of the arrays that are written with each chunk of the layers."""
        return schema.flag_arrays(self.manifest, split)

    def layer(self, split: str, name: str) -> LayerReader:
        """Open a layer for reading; refuses one that is incomplete.

        Raises
        ------
        IncompleteError
            If a chunk has not been written yet.
        DamagedError
            If its metadata is not what was written.
        """
        info = self.layer_info(name)
        return LayerReader(
            root=self.path,
            key=paths.array_key(split, name),
            grid=self.grid(split),
            array=self._open(split, name),
            shape=info.shape,
            dtype=np.dtype(self.manifest.dtype),
            plain=self.manifest.compression == "none",
            records=self._complete(split, name),
            cure=self._cure(),
        )

    def digest(self, split: str, name: str) -> str:
        """Digest of a layer in a split: of the checksums of features, labels and validity."""
        return _digest_of_records([self._complete(split, array) for array in (name, paths.LABELS, paths.VALID)])

    def chunk_key(self, split: str, array: str, chunk: int) -> str:
        """Key of one chunk of an array."""
        return schema.chunk_key_of(self.manifest, split, array, chunk)

    def chunk_keys(self, split: str, array: str) -> list[str]:
        """Keys of an array's chunks, in order."""
        return [self.chunk_key(split, array, chunk) for chunk in range(self.grid(split, array).num_chunks)]

    @property
    def records(self) -> Records:
        """Records of the journals by key: the chunks that count. Read once; `refresh` reads what was added."""
        return self._journals.records

    @cached_property
    def _journals(self) -> JournalReader:
        reader = JournalReader(self.journals)
        reader.update()
        return reader

    def refresh(self, *, trust_sizes: bool = False) -> None:
        """Read what has been added to the journals since; see `JournalReader.update`."""
        self._journals.update(trust_sizes=trust_sizes)

    def reread(self) -> None:
        """Discard the records that were read, since the journals have been rewritten."""
        self.__dict__.pop("_journals", None)

    def pending(self, layers: Sequence[str], *, trust_sizes: bool = False) -> PendingChunks:
        """Chunks of which a layer is missing; the smaller split first, which shows errors early."""
        self.refresh(trust_sizes=trust_sizes)
        splits = tuple(sorted(self.manifest.splits, key=lambda split: self.manifest.splits[split].num_rows))
        found: list[tuple[Ints, Ints, Bools, Bools]] = []
        for number, split in enumerate(splits):
            missing, without_flags = self._missing(split, layers)
            chunks = np.flatnonzero(missing.any(axis=0))
            found.append((np.full(len(chunks), number, np.int64), chunks, missing[:, chunks], without_flags[chunks]))
        split_of, chunks_of, missing_of, flags_of = zip(*found, strict=True)
        return PendingChunks(
            layers=tuple(layers),
            splits=splits,
            grids=tuple(map(self.grid, splits)),
            split_of=np.concatenate(split_of),
            chunks=np.concatenate(chunks_of),
            missing=np.concatenate(missing_of, axis=1),
            without_flags=np.concatenate(flags_of),
        )

    def pending_in(self, split: str, chunk: int, layers: Sequence[str]) -> Work | None:
        """Return what is missing of one chunk at this moment."""
        self.refresh()

        def is_written(name: str) -> bool:
            return self.chunk_key(split, name, chunk) in self.records

        valid = not all(map(is_written, self.flag_arrays(split)))
        missing = tuple(name for name in layers if valid or not is_written(name))
        return Work(split=split, chunk=chunk, layers=missing, valid=valid) if missing else None

    def _missing(self, split: str, layers: Sequence[str]) -> tuple[Bools, Bools]:
        """Which layers are missing of each chunk, shape (layers, chunks), and whether its flags are."""
        without_flags = np.zeros(self.grid(split).num_chunks, np.bool_)
        for name in self.flag_arrays(split):
            without_flags |= ~self.is_committed(split, name)
        # Without its flags, the rest of a chunk can't be trusted, so all of it is written again.
        missing = np.zeros((len(layers), len(without_flags)), np.bool_)
        for number, name in enumerate(layers):
            missing[number] = without_flags | ~self.is_committed(split, name)
        return missing, without_flags

    def is_committed(self, split: str, array: str) -> Bools:
        """Whether each chunk of an array is in a journal, shape (chunks,)."""
        return self._table(split, array).is_committed(self.grid(split, array).num_chunks)

    def num_committed(self, split: str, array: str) -> int:
        """Number of committed chunks of an array."""
        return int(np.count_nonzero(self.is_committed(split, array)))

    def chunk_number(self, split: str, chunk: int) -> int:
        """Number of a chunk among those of all splits, which are in alphabetical order."""
        before = (each for each in self.manifest.splits if each < split)
        return sum(self.grid(each).num_chunks for each in before) + chunk

    def progress(self) -> tuple[int, int]:
        """Number of committed chunks of all arrays, and the total."""
        arrays_of = [(split, name) for split in self.manifest.splits for name in self.row_arrays(split)]
        arrays_of += [(split, name) for split in self.manifest.splits for name in self.manifest.layers]
        total = sum(self.grid(split, name).num_chunks for split, name in arrays_of)
        return sum(self.num_committed(split, name) for split, name in arrays_of), total

    def save_result(self, name: str, content: object) -> Path:
        """Save results of stage two with the features they were computed from."""
        path = paths.result_file(self.path, name)
        write_durably(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
        return path

    # ---------------------------------------------------------------- helpers

    def _open(self, split: str, name: str) -> zarr.Array[Any]:
        return open_checked(self.path, self.manifest, split, name)

    def _table(self, split: str, array: str) -> ChunkTable:
        return self._journals.records.table(paths.array_key(split, array), self._num_axes(split, array))

    def _num_axes(self, split: str, array: str) -> int:
        return schema.num_axes_of(self.manifest, split, array)

    def _complete(self, split: str, array: str) -> ChunkRecords:
        is_written = self.is_committed(split, array)
        missing = np.flatnonzero(~is_written)
        if len(missing):
            shown = ", ".join(map(str, missing[:5].tolist())) + (", ..." if len(missing) > 5 else "")
            raise IncompleteError(
                f"{self.path}: {split}/{array} is incomplete: {len(is_written) - len(missing)} of {len(is_written)} "
                f"chunks are written, missing {shown}. {self.how_to_finish}"
            )
        table = self._table(split, array)
        return ChunkRecords(paths.array_key(split, array), self._num_axes(split, array), table, len(is_written))

    def _chunk(self, split: str, name: str, chunk: int) -> Array:
        record = self.records[self.chunk_key(split, name, chunk)]
        return self._read_chunk(self._open(split, name), record, split, name, chunk)

    def _read_chunk(self, array: zarr.Array[Any], record: Record, split: str, name: str, chunk: int) -> Array:
        read = checked_numbers if is_plain(array) else checked_rows
        return read(self.path, array, record, self.grid(split, name).rows(chunk), chunk=chunk, cure=self._cure())

    def _small_array(self, split: str, name: str) -> Array:
        records, array = self._complete(split, name), self._open(split, name)

        def read(chunks: range) -> Array:
            return np.concatenate([self._read_chunk(array, records[chunk], split, name, chunk) for chunk in chunks])

        with ThreadPoolExecutor(THREADS) as readers:  # chunks may be many, and a file system slow to open each
            every = range(len(records))
            return np.concatenate(list(readers.map(read, (every[at : at + 256] for at in every[::256]))))

    @property
    def how_to_finish(self) -> str:
        """Advice if chunks have not been written yet."""
        command = "bench import" if self.manifest.made_from.get("imported") else "bench extract"
        return f"Run the same `{command}` command again: it writes what is missing."

    def _cure(self) -> str:
        if self.manifest.made_from.get("imported"):
            return "Import it again with `bench import --overwrite`."
        return f"Run `bench verify {self.path} --repair`, then `bench extract` again: it writes what is missing."


def _digest_of_records(arrays: Sequence[ChunkRecords]) -> str:
    """`digest_of({key: [size, crc32c], ...})`, without holding all keys and their JSON at a time."""
    digest = hashlib.sha256(b"{")
    # As for all keys together: those of one array are consecutive, since no other key begins as they do.
    is_first = True
    for records in sorted(arrays, key=lambda records: records[0].key):
        for item in records.json_items():
            digest.update(item if is_first else b"," + item)
            is_first = False
    digest.update(b"}")
    return digest.hexdigest()


def feature_sets(store: Path) -> Iterator[FeatureSet]:
    """Yield the readable feature sets of a store, by name."""
    if store.is_dir():
        for path in sorted(store.iterdir()):
            if not path.name.startswith(".") and (path / paths.METADATA).is_file():
                try:
                    yield FeatureSet.open(path)
                except StoreError as error:
                    logger.warning("%s", error)


def _where_else(path: Path) -> str:
    """What to try instead of a feature set that does not exist."""
    if looks_like_feature_set(path.parent):
        return f"{path.parent} is a feature set itself; its store is {path.parent.parent}."
    others = [found.path.name for found in feature_sets(path.parent)]
    return suggest(path.name, others) if others else "There is none; make one with `bench extract`."


def looks_like_feature_set(path: Path) -> bool:
    """Whether a folder is, or was, a feature set: it has journals or a manifest, even a damaged one."""
    try:
        return (path / paths.JOURNALS).is_dir() or f'"{ATTRIBUTE}"'.encode() in read_regular(path / paths.METADATA)
    except OSError:
        return False
