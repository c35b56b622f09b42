"""Two hosts run one extraction under torchrun, and one of them dies: the other finishes it.

The hosts are network namespaces joined by a veth pair, each with its own host name; both see one
file system, as hosts of a cluster do.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from featbench.store import verify
from tests.conftest import ROOT
from tests.reliability.ranks import chunks_of, committed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="iproute2 is not installed"),
]

HOSTS = {"benchhost1": "10.77.0.1", "benchhost2": "10.77.0.2"}

DIGITS = ("digits", "extract.batch_size=16", "storage.rows_per_chunk=16", "transform.resize=112", "transform.crop=112",
          "extract.threads=1")  # fmt: skip


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Make both namespaces, with names that each can resolve."""
    names = list(HOSTS)
    commands = [f"ip netns add {name}" for name in names]
    commands += [f"ip link add veth_{names[0]} type veth peer name veth_{names[1]}".replace("veth_benchhost", "bveth")]
    for number, (name, address) in enumerate(HOSTS.items(), start=1):
        commands += [
            f"ip link set bveth{number} netns {name}",
            f"ip -n {name} addr add {address}/24 dev bveth{number}",
            f"ip -n {name} link set bveth{number} up",
            f"ip -n {name} link set lo up",
        ]
    folders = [Path(f"/etc/netns/{name}") for name in names]
    try:
        for command in commands:
            subprocess.run(command.split(), check=True)
        for folder in folders:
            folder.mkdir(parents=True)
            lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in HOSTS.items())]
            (folder / "hosts").write_text("\n".join(lines) + "\n")
        yield names
    finally:
        for name, folder in zip(names, folders, strict=True):
            subprocess.run(["ip", "netns", "del", name], check=False)
            shutil.rmtree(folder, ignore_errors=True)


def torchrun(host: str, folder: Path, log: IO[str]) -> subprocess.Popen[bytes]:
    """The line of the documentation, on one host."""
    line = (
        f"hostname {host}; exec {sys.executable} -m torch.distributed.run --nnodes=1:2 --nproc-per-node=1 "
        f"--max-restarts=3 --rdzv-backend=c10d --rdzv-endpoint=benchhost1:29400 --rdzv-id=bench "
        f"--rdzv-conf=last_call_timeout=5 -m featbench extract {' '.join(DIGITS)} --name two_hosts"
    )
    return subprocess.Popen(
        ["ip", "netns", "exec", host, "unshare", "-u", "bash", "-c", line],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip


def kill_host(name: str) -> None:
    pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True).stdout.split()
    assert pids
    for pid in pids:
        os.kill(int(pid), signal.SIGKILL)


def test_one_of_two_hosts_is_killed_and_the_other_finishes(hosts: list[str], tmp_path: Path) -> None:
    alone = [sys.executable, "-m", "featbench", "extract", *DIGITS, "--name", "alone", "--quiet"]
    subprocess.run(alone, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=300)
    logs = [(tmp_path / f"{host}.log").open("w+") for host in hosts]
    running = [torchrun(host, tmp_path, log) for host, log in zip(hosts, logs, strict=True)]
    path = tmp_path / "features/two_hosts"
    try:
        deadline = time.monotonic() + 120
        while not both_write(path):
            assert time.monotonic() < deadline, logs[0].name
            time.sleep(0.1)
        kill_host(hosts[1])
        deadline = time.monotonic() + 240
        while "Extracted res2, res3, res4, res5" not in Path(logs[0].name).read_text():
            # torchrun itself waits for up to five minutes more, for the host that will not come
            assert time.monotonic() < deadline, Path(logs[0].name).read_text()
            time.sleep(0.5)
    finally:
        for process in running:
            process.kill()
    assert not list(verify(path))
    assert chunks_of(path) == chunks_of(tmp_path / "features/alone")


def both_write(path: Path) -> bool:
    if committed(path) == 0:
        return False
    journals = [journal for journal in (path / "journals").glob("*.jsonl") if b"res5" in journal.read_bytes()]
    return len(journals) == len(HOSTS)
