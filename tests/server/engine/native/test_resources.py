"""Cores and memory of a container or a systemd unit, read from files as kernels write them."""

import os
from pathlib import Path

import pytest

from server.engine.native import pages, resources

GIB = 1 << 30


def tree(root: Path, files: dict[str, str], own: str = "0::/\n") -> tuple[Path, Path]:
    """The tree's root and the process's own file."""
    for name, text in files.items():
        (root / "sys" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "sys" / name).write_text(text)
    (root / "own").write_text(own)
    return root / "sys", root / "own"


@pytest.mark.parametrize(
    ("files", "own", "allowed"),
    [
        ({"cpu.max": "150000 100000\n"}, "0::/\n", 1.5),
        ({"cpu.max": "max 100000\n"}, "0::/\n", None),
        ({"system.slice/it.service/cpu.max": "300000 100000\n"}, "0::/system.slice/it.service\n", 3.0),
        ({"cpu.max": "200000 100000\n"}, "0::/../outside\n", 2.0),  # a name that this namespace does not see
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "3:cpu,cpuacct:/\n0::/\n", 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "3:cpu,cpuacct:/\n", None),
        (
            {"cpu/docker/1/cpu.cfs_quota_us": "400000\n", "cpu/docker/1/cpu.cfs_period_us": "100000\n"},
            "3:cpu,cpuacct:/docker/1\n",
            4.0,
        ),
        ({}, "", None),
    ],
)
def test_cores(tmp_path: Path, files: dict[str, str], own: str, allowed: float | None) -> None:
    assert resources.cores_allowed(*tree(tmp_path, files, own)) == allowed


@pytest.mark.parametrize(
    ("files", "own", "left"),
    [
        (
            {
                "memory.max": f"{4 * GIB}\n",
                "memory.current": f"{3 * GIB}\n",
                "memory.stat": f"anon {GIB}\ninactive_file {2 * GIB}\nactive_file 0\n",
            },
            "0::/\n",
            3 * GIB,
        ),
        ({"memory.max": "max\n", "memory.current": "1\n"}, "0::/\n", None),
        ({"a/memory.max": f"{GIB}\n", "a/memory.current": f"{2 * GIB}\n"}, "0::/a\n", -GIB),
        (
            {
                "memory/memory.limit_in_bytes": f"{2 * GIB}\n",
                "memory/memory.usage_in_bytes": f"{GIB}\n",
                "memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 2}\n",
            },
            "4:memory:/\n0::/\n",
            3 * GIB // 2,
        ),
        ({}, "", None),
    ],
)
def test_memory(tmp_path: Path, files: dict[str, str], own: str, left: int | None) -> None:
    assert resources.memory_allowed(*tree(tmp_path, files, own)) == left


def test_the_smaller_of_limit_and_free_memory_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemAvailable: 1000 kB\n")
    monkeypatch.setattr(pages, "MEMORY", tmp_path / "meminfo")
    for allowed, free in ((None, 1000 << 10), (5000 << 10, 1000 << 10), (7 << 10, 7 << 10), (-1, 0)):
        monkeypatch.setattr(resources, "memory_allowed", lambda allowed=allowed: allowed)
        assert pages.available() == free


def test_a_quota_lowers_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for quota, chosen in (
        (None, (7, "8 cores; one is left for HTTP")),
        (2.5, (1, "8 cores and a quota of 2.5; one is left for HTTP")),
        (0.5, (1, "8 cores and a quota of 0.5")),
    ):
        monkeypatch.setattr(resources, "cores_allowed", lambda quota=quota: quota)
        assert resources.choose_threads() == chosen
    assert resources.choose_threads(5) == (5, "it was asked for")
