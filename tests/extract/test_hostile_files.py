"""Hostile and damaged images, archives and lists: an error in words that names the file, soon and in little memory."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featbench.extract.data.archives import members, read_member
from featbench.extract.data.filelists import list_files
from featbench.extract.data.images import read_picture
from featbench.extract.data.list_formats import read_classes, read_list
from featbench.extract.data.sources import open_sources
from featbench.extract.errors import DataError, ImageError, OutOfMemoryError, UnavailableError
from featbench.extract.transform import Transform
from featbench.store import BenchError
from tests.conftest import ROOT, Bench, save_image


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fail what does not end."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def limited(kind: int, amount: int) -> Iterator[None]:
    """Allow this process no more open files, or memory, than that."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (amount, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def memory_in_use() -> int:
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[0]) * resource.getpagesize()


def special(path: Path, kind: str) -> Path:
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path.with_name("pipe"))
        path.symlink_to("pipe")
    return path


@pytest.mark.parametrize("kind", ["FIFO", "socket", "device", "folder", "link to a FIFO"])
def test_special_files_never_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    with within(20), pytest.raises(ImageError, match=r"a\.png: cannot be read as an image: a .*, not a regular file"):
        read_picture(special(tmp_path / "a.png", kind), name="a.png")
    for number, ending in enumerate((".txt", ".csv", ".json", ".npy")):
        folder = tmp_path / str(number)
        folder.mkdir()
        with within(20), pytest.raises(DataError, match="not a regular file"):
            read_list(special(folder / f"list{ending}", kind))
        with within(20), pytest.raises(DataError, match="not a regular file"):
            read_classes(folder / f"list{ending}")
    with within(20), pytest.raises(DataError, match="not a regular file"):
        list(members(tmp_path / "a.png"))


def test_a_file_of_a_size_that_no_image_has_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(8 * 2**30)
    with within(20), pytest.raises(ImageError, match=r"a\.png: .*too large: 8\.0 GiB"):
        read_picture(tmp_path / "a.png", name="a.png")


def test_a_postscript_file_is_not_handed_to_another_program(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageError, match="not an image of a known kind"):
        read_picture(tmp_path / "a.jpg", name="a.jpg")


@pytest.mark.parametrize("size", [(2, 60_000), (60_000, 2), (1, 10_000)])
def test_a_narrow_image_that_would_grow_too_large_is_an_error_by_name(size: tuple[int, int]) -> None:
    with within(20), pytest.raises(ImageError, match=r"strip\.png: .* it would have [\d,]+ pixels"):
        Transform(resize=256 if 1 not in size else 1024, crop=224).pixels(Image.new("RGB", size), name="strip.png")


def one_image_zip(path: Path, content: bytes, *, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as made:
        made.writestr("a.png", content)
    return path


def read_first(archive: Path) -> bytes:
    member = next(iter(members(archive)))
    with archive.open("rb") as file:
        return read_member(archive, file.fileno(), start=member.start, size=member.size)


@pytest.mark.parametrize("factor", [0.5, 100])
def test_a_zip_member_that_lies_about_its_size_is_unpacked_no_further(tmp_path: Path, factor: float) -> None:
    content = bytes(10 * 2**20)
    archive = one_image_zip(tmp_path / "all.zip", content)
    changed = bytearray(archive.read_bytes())
    directory = changed.rindex(b"PK\x01\x02")
    changed[directory + 24 : directory + 28] = struct.pack("<I", int(len(content) * factor))
    archive.write_bytes(changed)
    message = "unpacks to more than 5,242,880 bytes" if factor < 1 else "unpacks to 10,485,760 bytes"
    with within(20), pytest.raises(ImageError, match=message):
        read_first(archive)


def test_a_zip_member_of_gigabytes_is_not_unpacked(tmp_path: Path) -> None:
    archive = one_image_zip(tmp_path / "all.zip", b"x")
    changed = bytearray(archive.read_bytes())
    directory = changed.rindex(b"PK\x01\x02")
    changed[directory + 24 : directory + 28] = struct.pack("<I", 2**32 - 2)
    archive.write_bytes(changed)
    with within(20), pytest.raises(ImageError, match=r"too large: 4\.0 GiB"):
        read_first(archive)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_flipped_bit_of_a_zip_member_is_found_by_its_checksum(tmp_path: Path, compression: int) -> None:
    content = np.random.default_rng(0).bytes(3000)
    archive = one_image_zip(tmp_path / "all.zip", content, compression=compression)
    assert read_first(archive) == content
    changed = bytearray(archive.read_bytes())
    changed[1500] ^= 1
    archive.write_bytes(changed)
    with pytest.raises(ImageError, match="damaged|unpacks to"):
        read_first(archive)


def test_malformed_lists_are_refused_with_a_message(tmp_path: Path) -> None:
    json_list, npy_list, txt_list = tmp_path / "a.json", tmp_path / "a.npy", tmp_path / "a.txt"
    json_list.write_text("[" * 200_000)
    with pytest.raises(DataError, match=r"a\.json: expected images"):
        read_list(json_list)
    np.save(npy_list, np.array(["a", None], object), allow_pickle=True)
    with pytest.raises(DataError, match=r"a\.npy: not a plain \.npy"):
        read_list(npy_list)
    header = b"{'descr': '<U4', 'fortran_order': False, 'shape': (99999999999,), }".ljust(117) + b"\n"
    npy_list.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"abcd")
    with within(20), pytest.raises(DataError, match=r"a\.npy"):
        read_list(npy_list)
    txt_list.write_bytes(b"a\0b.png\n")
    with pytest.raises(DataError, match="contains a NUL character"):
        list_files(txt_list, root=tmp_path)


def seeds_of(tmp_path: Path) -> Iterator[Any]:
    """A small valid file of each kind, and what reads it."""
    for name in ("a", "b"):
        save_image(tmp_path / f"{name}.png")

    def image(path: Path) -> int:
        return np.asarray(read_picture(path, name=path.name).image).sum()

    def archive(path: Path) -> None:
        for member in members(path):
            with path.open("rb") as file:
                read_picture(read_member(path, file.fileno(), start=member.start, size=member.size), name=member.path)

    def filelist(path: Path) -> None:
        list_files(path, root=tmp_path, on_missing="skip")

    for ending in ("jpg", "png", "bmp", "gif", "webp", "tiff", "ppm"):
        yield save_image(tmp_path / f"seed.{ending}").read_bytes(), f"x.{ending}", image
    png = (tmp_path / "a.png").read_bytes()
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        yield one_image_zip(tmp_path / "seed.zip", png, compression=compression).read_bytes(), "x.zip", archive
    with tarfile.open(tmp_path / "seed.tar", "w") as made:
        made.add(tmp_path / "a.png", "a/b.png")
    yield (tmp_path / "seed.tar").read_bytes(), "x.tar", archive
    for names in (np.array(["a.png", "b.png"]), np.array([b"a.png", b"b.png"]), np.array([1, 2])):
        buffer = io.BytesIO()
        np.save(buffer, names)
        yield buffer.getvalue(), "x.npy", filelist
    yield b"a.png 1\nb.png 2\n", "x.txt", filelist
    yield b'path,label\n"a.png",cat\nb.png,dog\n', "x.csv", filelist
    content = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "annotations": [{"image_id": 1, "category_id": 3}, {"image_id": 2, "category_id": 4}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}],
    }
    yield json.dumps(content).encode(), "x.json", filelist


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """Flip bits, cut, repeat, or put in bytes that mean something elsewhere."""
    changed = bytearray(content)
    for _ in range(int(random.integers(1, 5))):
        at = int(random.integers(0, len(changed) or 1))
        kind = random.integers(0, 6)
        if kind == 0 and changed:
            changed[at % len(changed)] ^= 1 << int(random.integers(0, 8))
        elif kind == 1:
            del changed[at:]
        elif kind == 2:
            changed[at:at] = random.bytes(int(random.integers(1, 9)))
        elif kind == 3:
            changed[at : at + 4] = b"\xff\xff\xff\x7f"
        elif kind == 4:
            changed[at:at] = changed[: int(random.integers(0, 60))]
        else:
            words = (b"\0", b'"', b"\n", b",", b"[[[[", b"{}", b"null", b"1e999", b"-1", b"../", b"/", b"\xed\xa0\x80")
            changed[at:at] = words[int(random.integers(0, len(words)))]
    return bytes(changed)


@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_every_change_of_a_file_is_at_most_an_error_message(tmp_path: Path, count: int) -> None:
    """16 kinds of files; each is read, or refused with a BenchError, within seconds."""
    random = np.random.default_rng(count)
    read = refused = 0
    for content, name, reads in list(seeds_of(tmp_path)):
        for number in range(count):
            path = tmp_path / name
            path.write_bytes(mutated(content, random))
            try:
                with within(60):
                    reads(path)
                read += 1
            except BenchError as error:
                refused += bool(str(error))
            except Exception as error:
                raise AssertionError(f"{name}, change {number}: {path.read_bytes()[:3000]!r}") from error
    assert read
    assert refused > count


def test_an_image_that_cannot_be_read_is_skipped_and_others_are_not(tmp_path: Path, bench: Bench) -> None:
    for split in ("train", "val"):
        for number in range(3):
            save_image(tmp_path / "d" / split / "cat" / f"{number}.png", seed=number)
    os.mkfifo(tmp_path / "d/train/cat/pipe.png")
    Image.new("RGB", (2, 60_000)).save(tmp_path / "d/train/cat/strip.png")
    words = [
        "extract", "folder", "--data", "d", "--random-weights", "0", "model.trunk=squeezenet1_0", "--layers",
        "features.3", "transform.resize=256", "transform.crop=32", "extract.workers=0", "--quiet", "--name", "mine",
    ]  # fmt: skip
    with within(100):
        stopped = bench(*words)
        assert stopped.returncode == 2
        assert "pipe.png" in stopped.stderr
        skipped = bench(*words, "--on-error", "skip")
    assert skipped.returncode == 0, skipped.stderr
    assert "strip.png" in skipped.stderr


def test_archives_whose_names_have_a_nul_or_are_not_utf8_are_read_or_refused_with_a_message(tmp_path: Path) -> None:
    image, named = save_image(tmp_path / "a.png").read_bytes(), []
    for number, name in enumerate(("train/c/\udce9.png", "train/c/a\0b.png", "train/c/" + "x" * 300 + ".png")):
        archive = tmp_path / f"{number}.tar"
        with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as made:
            for path in (name, "val/c/a.png"):
                info = tarfile.TarInfo(path)
                info.size = len(image)
                made.addfile(info, io.BytesIO(image))
        try:
            assert open_sources(source="folder", root=archive)["train"].open(0).size == (40, 30)
        except BenchError as error:
            named.append(str(archive) in str(error))
    assert all(named)


@pytest.mark.parametrize("archive", [False, True])
def test_an_image_is_not_blamed_for_too_few_open_files(tmp_path: Path, archive: bool) -> None:
    for split in ("train", "val"):
        save_image(tmp_path / "d" / split / "a" / "0.png")
    if archive:
        with tarfile.open(tmp_path / "d.tar", "w") as tar:
            tar.add(tmp_path / "d", arcname=".")
    source = open_sources(source="folder", root=tmp_path / ("d.tar" if archive else "d"))["train"]
    first = source.read(0)
    with limited(resource.RLIMIT_NOFILE, 3), pytest.raises(UnavailableError, match=r"0\.png.*open files.*ulimit -n"):
        source.read(0)
    assert source.read(0).digest == first.digest


def test_an_image_is_not_blamed_for_too_little_memory() -> None:
    """In a new process, which has no freed memory to take again."""
    code = "from tests.extract.test_hostile_files import read_with_too_little_memory as read; read()"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr


def read_with_too_little_memory() -> None:
    packed = io.BytesIO()
    Image.new("1", (9000, 9000)).save(packed, "PNG")
    read_picture(packed.getvalue(), name="a.png")
    small = Image.new("RGB", (100, 100))
    with limited(resource.RLIMIT_AS, memory_in_use() + 2**25):
        with pytest.raises(OutOfMemoryError, match=r"a\.png: out of memory.*--workers lower"):
            read_picture(packed.getvalue(), name="a.png")
        with pytest.raises(OutOfMemoryError, match=r"b\.png: out of memory"):
            Transform(resize=8000).pixels(small, name="b.png")


def test_no_more_memory_is_asked_for_than_a_file_needs(tmp_path: Path) -> None:
    path = save_image(tmp_path / "a.png")
    expected = read_picture(path.read_bytes(), name="a.png")
    with limited(resource.RLIMIT_AS, memory_in_use() + 2**28):
        assert read_picture(path, name="a.png").digest == expected.digest
