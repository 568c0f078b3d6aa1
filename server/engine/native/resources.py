"""The cores and memory that this process may use, by its CPU affinity and its control group (version 1 or 2).

Only the process's own group counts, such as a container's or a systemd unit's; groups above it are ignored.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def cores_allowed(root: Path = ROOT, own: Path = OWN) -> float | None:
    """The CPU quota in cores; None without a limit."""
    for group in _groups(root, own, ""):
        quota, _, period = _text(group / "cpu.max").partition(" ")
        if quota:
            return None if quota == "max" else int(quota) / int(period or 100_000)
    for group in _groups(root / "cpu", own, "cpu"):
        quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
        if quota and period:
            return int(quota) / int(period) if int(quota) > 0 else None
    return None


def memory_allowed(root: Path = ROOT, own: Path = OWN) -> int | None:
    """Bytes below the memory limit, not counting reclaimable file pages as used; None without a limit."""
    for group in _groups(root, own, ""):
        if limit := _text(group / "memory.max"):
            return None if limit == "max" else int(limit) - _used(group, "memory.current", "inactive_file")
    for group in _groups(root / "memory", own, "memory"):
        if limit := _text(group / "memory.limit_in_bytes"):  # about 2^63 without a limit
            return int(limit) - _used(group, "memory.usage_in_bytes", "total_inactive_file")
    return None


def choose_threads(wanted: int | None = None) -> tuple[int, str]:
    """The number of threads of a runner, and the reason."""
    if wanted is not None:
        return wanted, "it was asked for"
    cores = len(os.sched_getaffinity(0))
    quota = cores_allowed()
    usable = cores if quota is None else max(1, min(cores, math.floor(quota)))
    limit = f"{cores} cores" if quota is None else f"{cores} cores and a quota of {quota:g}"
    if usable > 1:
        return usable - 1, f"{limit}; one is left for HTTP"
    return 1, limit


def _groups(root: Path, own: Path, controller: str) -> Iterator[Path]:
    """Candidate directories of the process's control group: by name, then the root; version 2 has no `controller`."""
    for line in _text(own).splitlines():
        _, controllers, name = line.split(":", 2)
        if controller in controllers.split(","):
            yield root / name.lstrip("/")
    yield root


def _used(group: Path, current: str, inactive: str) -> int:
    rows = (line.split() for line in _text(group / "memory.stat").splitlines())
    return int(_text(group / current) or 0) - sum(int(row[1]) for row in rows if row[0] == inactive)


def _text(file: Path) -> str:
    """The file's contents, stripped; empty if it cannot be read."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""
