"""How many threads compute: as many as this process may use, less one for HTTP where there are two or more.

A container's quota counts: threads beyond it only wait for each other.
"""

import math
import os

from server.native import cgroup


def choose_threads(wanted: int | None = None) -> tuple[int, str]:
    """The number of threads, and why."""
    if wanted is not None:
        return wanted, "it was asked for"
    cores = len(os.sched_getaffinity(0))
    quota = cgroup.cores()
    usable = cores if quota is None else max(1, min(cores, math.floor(quota)))
    limit = f"{cores} cores" if quota is None else f"{cores} cores and a quota of {quota:g}"
    if usable > 1:
        return usable - 1, f"{limit}; one is left for HTTP"
    return 1, limit
