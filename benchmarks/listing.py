"""What the cached listing of many images costs each rank.

    python -m benchmarks.listing                   20 million images, a file of 1.6 GiB; about three minutes
    python -m benchmarks.listing --images 1000000

The listing is made, with paths of 45 bytes as ImageNet's have. Two processes then open it at once and read the rows of
some chunks; each says how long that took and how much memory it has to itself. The images themselves don't exist.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from featbench.extract.data.listing import Listing, Paths
from featbench.extract.data.listing_file import map_listing, write_listing
from featbench.store import RowFacts

PATH = b"train/n00000000/n00000000_000000000000000.JPEG"
CHUNKS, ROWS_PER_CHUNK = 20, 1024


def made(count: int) -> Listing:
    """Make a listing."""
    text = np.tile(np.frombuffer(PATH, np.uint8), (count, 1))
    for place, digit in enumerate(range(len(PATH) - 6, len(PATH) - 6 - 12, -1)):
        text[:, digit] = np.arange(count) // 10**place % 10 + ord("0")
    nothing, one = np.zeros(0, np.int64), np.ones(count, np.int64)
    return Listing(
        paths=Paths(text.reshape(-1), np.arange(1, count + 1) * len(PATH)), sizes=110_000 * one, changed=one,
        starts=0 * one, archive=0 * one, labels=np.arange(count) % 1000, class_names=tuple(map(str, range(1000))),
        archives=Paths.of([]), watched=Paths.of([]), stamps=nothing.reshape(0, 2),
    )  # fmt: skip


def dirty_mib() -> float:
    """Memory of this process that the kernel can't drop and read again, in MiB."""
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in rollup if line.startswith("Private_Dirty")) / 1024


def measure(file: Path) -> str:
    """Open the listing and read some rows, in this process."""
    before, start = dirty_mib(), time.perf_counter()
    listing = map_listing(file)
    opened, start = time.perf_counter() - start, time.perf_counter()
    for first in np.linspace(0, len(listing) - ROWS_PER_CHUNK, CHUNKS, dtype=int).tolist():
        for row in range(first, first + ROWS_PER_CHUNK):
            if listing.groups is not None:
                listing.groups.check(row)
            assert listing.paths[row].endswith(f"{row}.JPEG")
    seconds = time.perf_counter() - start
    return (
        f"opened in {opened:.3f} s, {CHUNKS} chunks' rows read in {seconds:.2f} s; "
        f"{dirty_mib() - before:.1f} MiB of its own"
    )


def main() -> None:
    """Read the command line, make the listing, and let two processes open it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000_000)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.file is not None:
        print(measure(options.file))
        return
    with tempfile.TemporaryDirectory(prefix="bench-listing-") as folder:
        file = Path(folder) / "made.listing"
        start = time.perf_counter()
        write_listing(file, made(options.images), RowFacts(listing="0" * 64, used_labels=tuple(range(1000))))
        print(f"made and written in {time.perf_counter() - start:.0f} s: {file.stat().st_size / 2**30:.2f} GiB")
        command = [sys.executable, "-m", "benchmarks.listing", "--file", str(file)]
        for process in [subprocess.Popen(command) for _ in range(2)]:
            process.wait()


if __name__ == "__main__":
    main()
