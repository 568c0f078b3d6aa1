"""How many threads compute: as many as this process may use, less one for HTTP where there are two or more.

A container's quota counts: threads beyond it only wait for each other.
"""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def choose_threads(wanted: int | None = None) -> tuple[int, str]:
    """The number of threads, and why."""
    if wanted is not None:
        return wanted, "it was asked for"
    cores = len(os.sched_getaffinity(0))
    quota = cgroup_quota()
    usable = cores if quota is None else max(1, min(cores, math.floor(quota)))
    limit = f"{cores} cores" if quota is None else f"{cores} cores and a quota of {quota:g}"
    if usable > 1:
        return usable - 1, f"{limit}; one is left for HTTP"
    return 1, limit


def cgroup_quota(root: Path = CGROUP) -> float | None:
    """The cores that the control group allows, or None where it sets no limit."""
    try:
        text = (root / "cpu.max").read_text()
    except OSError:
        return _older_quota(root)
    quota, _, period = text.partition(" ")
    return None if quota == "max" else int(quota) / int(period or 100_000)


def _older_quota(root: Path) -> float | None:
    """The same from the first version of control groups."""
    try:
        quota = int((root / "cpu" / "cpu.cfs_quota_us").read_text())
        period = int((root / "cpu" / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 else None
