"""The sampler under address and undefined-behaviour sanitizers, with random rows, for some seconds.

SECATEUR_FUZZ_SECONDS makes it longer.
"""

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NATIVE = HERE.parent.parent / "server" / "native"
SOURCES = [NATIVE / f"{name}.cpp" for name in ("sampling", "rows_portable", "rows_avx2")] + [HERE / "fuzz_sampling.cpp"]
FLAGS = ["-std=c++20", "-O1", "-g1", "-Wno-psabi", f"-I{NATIVE}", "-fsanitize=address,undefined"]
FLAGS += ["-fno-sanitize-recover=all"]


def test_random_rows_agree_and_no_memory_is_misused(tmp_path: Path) -> None:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None or platform.machine() != "x86_64":
        pytest.skip("there is no C++ compiler for x86-64")

    def compiled(source: Path) -> str:
        wide = ["-mavx2", "-mfma"] if source.stem == "rows_avx2" else []
        subprocess.run([compiler, *FLAGS, *wide, "-c", source, "-o", tmp_path / f"{source.stem}.o"], check=True)
        return str(tmp_path / f"{source.stem}.o")

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        objects = list(threads.map(compiled, SOURCES))
    subprocess.run([compiler, *FLAGS, *objects, "-o", tmp_path / "fuzz"], check=True)
    seconds = os.environ.get("SECATEUR_FUZZ_SECONDS", "4")
    done = subprocess.run([tmp_path / "fuzz", seconds, "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rows agree" in done.stdout
