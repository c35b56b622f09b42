"""The most memory that a process has taken; imports little, so that what it measures is not this."""

from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_kb() -> int:
    """Since the process began, or its peak was forgotten; Linux only."""
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))


def forget_peak() -> None:
    """Restart the peak at what is allocated now."""
    Path("/proc/self/clear_refs").write_text("5")
