"""`bench doctor` says what is wrong with a machine, a disk or an installation, and what to do; it leaves no files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest

from featbench.pipelines.doctor import disk, hardware, machine, software
from featbench.store import StoreError, lock_trial
from tests.conftest import Bench


def test_it_tries_disk_and_locks_and_leaves_nothing(bench: Bench, tmp_path: Path) -> None:
    result = bench("doctor", "--store", tmp_path / "not/yet", "--json")
    content = json.loads(result.stdout)
    found = {each["name"]: each for each in content["findings"]}
    assert found["locks"]["state"] == "good"
    assert found["disk speed"]["detail"].startswith("writes ")
    assert f"its parent {tmp_path} was tried" in found["file system"]["detail"]
    assert {"Python", "packages", "processor", "threads", "memory", "GPUs", "faiss", "kernels of torch", "/dev/shm",
            "extra timm", "free space", "command"} <= found.keys()  # fmt: skip
    assert sum(content["counts"].values()) == len(content["findings"])
    assert result.returncode == (content["counts"]["problem"] > 0)
    assert not list(tmp_path.iterdir())


def test_a_problem_is_said_with_its_cure_and_the_exit_code_is_one(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").touch()
    monkeypatch.setattr(disk, "locks_hold", lambda folder: True)
    result = bench("doctor", "--store", tmp_path)
    assert result.returncode == 1
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("names")]
    assert "PROBLEM: " in line
    assert "holds a module numpy" in line
    assert line.endswith("Rename it, or work in another folder.")


def test_locks_that_do_not_hold_are_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def none(path: Path) -> Iterator[bool]:
        yield True

    monkeypatch.setattr(lock_trial, "exclusive", none)  # as if the first process had not locked it
    assert not lock_trial.locks_hold(tmp_path)
    (finding,) = [each for each in disk.disk_findings(tmp_path, sample=2**20) if each.name == "locks"]
    assert (finding.state, "two runs could write the same chunk" in finding.detail) == ("problem", True)

    def refused(folder: Path) -> bool:
        raise StoreError("the file system of the feature set has no locks (Function not implemented)")

    monkeypatch.setattr(disk, "locks_hold", refused)
    (finding,) = [each for each in disk.disk_findings(tmp_path, sample=2**20) if each.name == "locks"]
    assert (finding.state, "NFS: without `nolock`" in finding.advice) == ("problem", True)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that root can't write to either")
def test_a_folder_that_can_not_be_written_is_a_problem() -> None:
    found = list(disk.disk_findings(Path("/proc/self")))
    assert [each.name for each in found if each.state == "problem"] == ["writing"]


def test_a_store_below_a_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (finding,) = disk.disk_findings(tmp_path / "file/features")
    assert (finding.state, finding.detail.startswith(f"{tmp_path / 'file'} is not a folder")) == ("problem", True)


@pytest.mark.parametrize(
    ("folder", "kind"),
    [("data/a b/c", "nfs4"), ("data", "ext4"), ("data/other", "ext4")],
)
def test_the_file_system_is_that_of_the_nearest_mount(folder: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "data/a b/c").mkdir(parents=True)
    (tmp_path / "data/other").mkdir()
    mounts = tmp_path / "mounts"
    escaped = str(tmp_path / "data/a b").replace(" ", r"\040")
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nhost:/x {escaped} nfs4 rw 0 0\ntmpfs {tmp_path}/dat tmpfs rw 0 0\n")
    assert disk.file_system_of(tmp_path / folder, mounts)[0] == kind


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "400000 100000\n",
          "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 4.0),
        ({"proc/self/cgroup": "4:cpu,cpuacct:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"proc/self/cgroup": "4:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_the_limit_of_cores_is_read_from_both_versions_of_cgroups(
    files: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.core_quota(tmp_path) == quota


def test_fewer_cores_than_threads_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "usable_cores", lambda: 16)
    monkeypatch.setattr(hardware, "core_quota", lambda: 4.0)
    finding = hardware._threads()
    assert (finding.state, "OMP_NUM_THREADS=4" in finding.advice) == ("problem", True)


def test_instructions_of_processors_are_read(tmp_path: Path) -> None:
    (tmp_path / "intel").write_text("model name\t: Xeon\nflags\t\t: sse avx2 avx512f avx512_bf16 amx_bf16 amx_tile\n")
    (tmp_path / "arm").write_text("Features\t: fp asimd bf16\n")
    assert machine.wide_instructions(tmp_path / "intel") == ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    assert machine.processor_name(tmp_path / "intel") == "Xeon"
    assert machine.wide_instructions(tmp_path / "arm") == ("bf16",)
    assert machine.wide_instructions(tmp_path / "none") == ()


def test_an_older_package_is_a_problem_with_the_command_that_cures_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def older(name: str) -> str:
        return "2.0" if name in ("torch", "timm") else version(name)

    monkeypatch.setattr("featbench.pipelines.doctor.software.version", older)
    found = {each.name: each for each in software.software_findings()}
    assert found["packages"].state == "problem"
    assert "torch>=2.6 (2.0)" in found["packages"].detail
    assert found["packages"].advice == "pip install 'torch>=2.6'"
    assert found["extra timm"].detail == "timm 2.0, for model.trunk=timm:NAME"


def test_distributions_that_overwrite_each_other_are_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("faiss_cpu", "faiss_gpu"):
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    (finding,) = software._overwritten()
    assert (finding.name, finding.state) == ("faiss-cpu and faiss-gpu", "problem")
