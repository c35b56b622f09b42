"""A real SLURM: two nodes on this machine run one extraction, and one of them dies."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from featbench.store import verify
from tests.conftest import ROOT
from tests.reliability.ranks import chunks_of, committed, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="SLURM's daemons are started as root"),
    pytest.mark.skipif(
        not all(map(shutil.which, ("slurmctld", "slurmd", "munged"))),
        reason="SLURM (slurm-wlm, munge) is not installed",
    ),
]

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=17000
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
SchedulerParameters=sched_interval=2
KillWait=10
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[17001-17002] CPUs=2 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES State=UP
"""

DIGITS = ("digits", "extract.batch_size=16", "storage.rows_per_chunk=16", "transform.resize=96", "transform.crop=96",
          "extract.threads=1")  # fmt: skip


class Cluster:
    """The daemons, and commands that use them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PYTHONPATH": str(ROOT)}
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        (self.folder / "state").mkdir(parents=True)
        host = socket.gethostname()
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(host=host, folder=self.folder))
        for path in ("/run/munge", "/var/log/munge", "/var/lib/munge"):
            Path(path).mkdir(parents=True, exist_ok=True)
            shutil.chown(path, "munge", "munge")
        if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode:
            subprocess.run(["runuser", "-u", "munge", "--", "munged"], check=True)
        self.controller = self._daemon("slurmctld", "-D", "-c")
        for node in ("n1", "n2"):
            self.start_node(node)
        deadline = time.monotonic() + 60
        while self.run("sinfo", "--noheader", "--format", "%D %T").stdout.strip() != "2 idle":
            assert time.monotonic() < deadline, self.run("sinfo").stdout
            time.sleep(0.5)

    def start_node(self, node: str) -> None:
        (self.folder / f"spool-{node}").mkdir(exist_ok=True)
        self.nodes[node] = self._daemon("slurmd", "-D", "-N", node)

    def kill_node(self, node: str) -> None:
        """Kill the daemon and all that runs under it, supervisors first, as when the host loses power."""
        tasks = [pid for pid in processes() if f"SLURMD_NODENAME={node}" in read_process(pid, "environ")]
        parents = {parent_of(pid) for pid in tasks}
        supervisors = [pid for pid in parents if "slurmstepd" in read_process(pid, "cmdline")]
        assert tasks
        assert supervisors
        self.nodes[node].kill()
        for pid in [*supervisors, *tasks]:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def stop(self) -> None:
        for process in (self.controller, *self.nodes.values()):
            process.kill()
        subprocess.run(["pkill", "-KILL", "slurmstepd"], check=False)

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)

    def bench(self, *arguments: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "featbench", *arguments],
            cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def _daemon(self, *command: str) -> subprocess.Popen[bytes]:
        log = (self.folder / "daemons.log").open("a")
        return subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)


def processes() -> list[str]:
    return [path.name for path in Path("/proc").iterdir() if path.name.isdigit()]


def read_process(pid: str | int, what: str) -> str:
    try:
        return Path(f"/proc/{pid}/{what}").read_text(errors="replace")
    except OSError:
        return ""


def parent_of(pid: str | int) -> str:
    return next((line.split()[1] for line in read_process(pid, "status").splitlines() if "PPid" in line), "")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path / "cluster")
    try:
        made.start()
        yield made
    finally:
        made.stop()


def test_a_job_on_two_nodes_survives_the_death_of_one(cluster: Cluster) -> None:
    alone = cluster.bench("extract", *DIGITS, "--name", "alone")
    assert alone.wait(300) == 0, alone.stdout.read()
    slurm = ("--slurm", "partition=main,nodes=2,time=30,cpus_per_task=2")
    job = cluster.bench("extract", *DIGITS, "--name", "job", *slurm)
    path = cluster.folder / "features/job"
    wait_for(lambda: committed(path) > 60, "the job does not write", 120)
    cluster.kill_node("n2")
    wait_for(lambda: "down" in cluster.run("sinfo", "--format", "%T").stdout, "the death is not noticed", 60)
    cluster.start_node("n2")
    # SLURM lets a requeued job wait for two minutes, unless told otherwise.
    wait_for(lambda: "PENDING" in cluster.run("squeue", "--format", "%T").stdout, "the job is not requeued", 60)
    cluster.run("scontrol", "update", "jobid=1", "StartTime=now")
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 0, output
    assert "RUNNING" in output
    assert "PENDING" in output
    assert not list(verify(path))
    assert chunks_of(path) == chunks_of(cluster.folder / "features/alone")
    assert cluster.bench("extract", *DIGITS, "--name", "job").wait(60) == 0


def test_a_job_that_is_cut_off_requeues_itself_and_goes_on(cluster: Cluster) -> None:
    job = cluster.bench(
        "extract", *DIGITS, "--name", "job", "--slurm", "partition=main,nodes=1,ntasks_per_node=2,time=30"
    )
    path = cluster.folder / "features/job"
    wait_for(lambda: committed(path) > 60, "the job does not write", 120)
    cluster.run("scancel", "--signal", "USR2", "1")  # what SLURM sends before it ends a job
    wait_for(lambda: "PENDING" in cluster.run("squeue", "--format", "%T").stdout, "the job is not requeued", 60)
    before = committed(path)
    cluster.run("scontrol", "update", "jobid=1", "StartTime=now")
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 0, output
    assert "Requeued job 1" in output
    assert not list(verify(path))
    assert committed(path) > before


def test_srun_starts_ranks_without_a_launcher(cluster: Cluster) -> None:
    command = [sys.executable, "-m", "featbench", "extract", *DIGITS, "--name", "by_srun"]
    done = subprocess.run(
        ["srun", "-N2", "-n2", *command], cwd=cluster.folder, env=cluster.environment, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    path = cluster.folder / "features/by_srun"
    assert not list(verify(path))
    assert len([journal for journal in (path / "journals").glob("*.jsonl") if journal.stat().st_size]) == 2


def test_wrong_parameters_are_refused_before_anything_is_submitted(cluster: Cluster) -> None:
    job = cluster.bench("extract", *DIGITS, "--slurm", "partitoin=main")
    output, _ = job.communicate(timeout=120)
    assert job.returncode == 2
    assert "no parameter 'partitoin'. Did you mean partition" in output
