"""The kernels under address and undefined-behaviour sanitizers, with random matrices, for some seconds.

AVX-512 is emulated (emulate.hpp), so every kernel is run on every machine. SECATEUR_FUZZ_SECONDS makes it longer.
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
KERNELS = ["rounding", "portable", "multiply", "pool", "choose"]
VECTORS = ["avx2_line", "avx2_batch", "avx2_halves", "avx512_line", "avx512_batch", "avx512_halves"]
WIDE = ["-DSECATEUR_AVX2", "-DSECATEUR_AVX512", "-DSECATEUR_EMULATE", "-mavx2", "-mfma", "-mf16c", "-mbmi2", "-mpopcnt"]
SANITIZERS = ["address,undefined"]


def build(folder: Path, sanitizer: str) -> Path:
    """Compile the kernels and the fuzz program."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None or platform.machine() != "x86_64":
        pytest.skip("there is no C++ compiler for x86-64")
    flags = ["-std=c++20", "-O1", "-g", "-ffp-contract=off", "-Wno-psabi", f"-fsanitize={sanitizer}"]
    flags += ["-fno-sanitize-recover=all", f"-I{NATIVE}", f"-I{HERE}", *WIDE]
    sources = [NATIVE / f"{name}.cpp" for name in KERNELS + VECTORS] + [HERE / "fuzz.cpp"]

    def compiled(source: Path) -> str:
        target = folder / f"{source.stem}.o"
        subprocess.run([compiler, *flags, "-c", source, "-o", target], check=True)
        return str(target)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        objects = list(threads.map(compiled, sources))
    subprocess.run([compiler, f"-fsanitize={sanitizer}", *objects, "-pthread", "-o", folder / "fuzz"], check=True)
    return folder / "fuzz"


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_random_matrices_agree_and_no_memory_is_misused(tmp_path: Path, sanitizer: str) -> None:
    program = build(tmp_path, sanitizer)
    seconds = os.environ.get("SECATEUR_FUZZ_SECONDS", "5")
    done = subprocess.run([program, seconds, "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cases agree on avx512 avx2 portable" in done.stdout
