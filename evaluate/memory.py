"""How much memory stage two may use, and how a search is cut into blocks that fit.

Only arrays that grow with the task are counted: queries, blocks of the database, lists. The interpreter and the
libraries take another 200 to 300 MiB.
"""

from __future__ import annotations

import re
from pathlib import Path

from featbench.evaluate.errors import EvaluationError

MIB = 2**20

BLOCK_BYTES = 128 * MIB
"""Bytes of a block of the database, where there is room; larger blocks are no faster (docs/log.md)."""

SCAN_BLOCK_BYTES = 512 * MIB
"""Most bytes of a block when a layer is only looked through."""

_FIXED_BYTES = 48 * MIB
"""Bytes that every search needs, whatever its size."""

_BYTES_PER_THREAD = 12 * MIB
"""Bytes that each thread needs to multiply, to cut lists and to rescore."""

_BYTES_PER_CANDIDATE = 40
"""Bytes of one entry of one list while it is proposed, rescored and sorted."""

_BYTES_PER_VOTE = 64
"""Bytes of one entry of one list while votes are counted."""

_MIN_QUERIES = 256
"""Fewest queries to search at a time: every pass reads the whole database."""

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def plan_blocks(
    memory: int,
    *,
    num_rows: int,
    rows_per_chunk: int,
    dim: int,
    num_queries: int,
    k: int,
    room: int,
    num_blocks: int,
    num_threads: int,
    libraries: int = 0,
    num_shares: int = 1,
) -> tuple[int, int]:
    """Cut a search so that it fits.

    Parameters
    ----------
    memory : int
        Bytes.
    num_rows, rows_per_chunk, dim : int
        The database's.
    num_queries : int
        Q.
    k : int
        Neighbours of each query.
    room : int
        Candidates of each query.
    num_blocks : int
        Copies of a block that are in memory at once.
    num_threads : int
        Threads that search.
    libraries : int
        Bytes that libraries take which are yet to be imported.
    num_shares : int
        Equal shares of the memory, of which the search gets one.

    Returns
    -------
    rows_per_block, queries_at_once : int

    Raises
    ------
    EvaluationError
        If it can't fit; the message says how much memory would do.

    Examples
    --------
    >>> plan_blocks(
    ...     2**30, num_rows=10**6, rows_per_chunk=1024, dim=256, num_queries=2000, k=200, room=528, num_blocks=3,
    ...     num_threads=2,
    ... )
    (131072, 2000)
    """
    memory //= num_shares
    results = num_queries * k * 16 + num_rows
    per_query = 4 * dim * 4 + room * _BYTES_PER_CANDIDATE
    chunk = rows_per_chunk * dim * 4
    always = _FIXED_BYTES + libraries + num_threads * _BYTES_PER_THREAD + results
    least = always + num_blocks * chunk + min(num_queries, _MIN_QUERIES) * per_query
    least = max(least, num_queries * k * _BYTES_PER_VOTE)
    if memory < least:
        share = f", 1 of {num_shares} equal shares of what is allowed" if num_shares > 1 else ""
        raise EvaluationError(
            f"the search does not fit into {in_words(memory)} of memory{share}: {num_queries:,} queries "
            f"of dimension {dim:,}, lists of {k:,} and {num_blocks} chunks of the database need at least "
            f"{in_words(least)}. Allow that with --memory {-(-num_shares * least // MIB)}MiB, or ask for a smaller k."
        )
    free = memory - always
    # Blocks get half of the free memory, queries the rest, and blocks what the queries do not need.
    blocks = num_blocks * max(chunk, min(BLOCK_BYTES, free // 2 // num_blocks))
    queries_at_once = min(num_queries, max(_MIN_QUERIES, (free - blocks) // per_query))
    queries_at_once = min(queries_at_once, (free - num_blocks * chunk) // per_query)
    block = min(BLOCK_BYTES, (free - queries_at_once * per_query) // num_blocks)
    chunks = max(1, block // chunk)
    return chunks * rows_per_chunk, queries_at_once


def rows_per_block(memory: int, *, dim: int) -> int:
    """Rows of float32 in one block of a layer that is looked through; two blocks take at most half of the memory.

    Examples
    --------
    >>> rows_per_block(2**30, dim=2048)
    32768
    """
    return max(1, min(SCAN_BLOCK_BYTES, memory // 4) // (4 * dim))


def parse_memory(text: str) -> int:
    """Parse an amount of memory, in powers of 1,024.

    Raises
    ------
    ValueError
        If the text is no amount of memory.

    Examples
    --------
    >>> parse_memory("1GiB") == parse_memory("1g") == parse_memory("1024 MB") == 2**30
    True
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text.lower())
    if not match or not 0 < float(match[1]) < 1e12:
        raise ValueError(f"must be an amount of memory such as 8GiB or 512MiB; got {text!r}")
    return int(float(match[1]) * _UNITS[match[2]])


def in_words(num_bytes: int) -> str:
    """Format a number of bytes.

    Examples
    --------
    >>> in_words(3 * 2**29), in_words(10 * 2**20)
    ('1.5 GiB', '10 MiB')
    """
    return f"{num_bytes / 2**30:.2g} GiB" if num_bytes >= 2**30 else f"{-(-num_bytes // MIB)} MiB"


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process can still allocate, by the machine or by the container's limit.

    Without Linux's `/proc`, 4 GiB are assumed.
    """
    free = [*_of_machine(root), *_of_cgroups(root)]
    return max(0, min(free)) if free else 4 * 2**30


def _of_machine(root: Path) -> list[int]:
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError:
        return []
    return [int(kib) * 1024 for kib in re.findall(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)]


def _of_cgroups(root: Path) -> list[int]:
    """Bytes left in each control group of this process (cgroups v1 and v2)."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    free = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / ("sys/fs/cgroup/memory" if controllers else "sys/fs/cgroup")
        limit, used = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        )
        folder = top / path.lstrip("/")
        for group in (folder, *folder.parents):
            if not group.is_relative_to(top):
                break
            free += _left(group, limit, used)
    return free


def _left(group: Path, limit: str, used: str) -> list[int]:
    try:
        most = (group / limit).read_text().strip()
        taken = int((group / used).read_text())
        text = (group / "memory.stat").read_text()
    except (OSError, ValueError):
        return []
    if not most.isdigit():  # "max": no limit
        return []
    # The page cache counts as used, but can be reclaimed.
    cache = sum(int(size) for size in re.findall(r"^(?:total_)?inactive_file (\d+)$", text, re.MULTILINE)[-1:])
    return [int(most) - taken + cache]
