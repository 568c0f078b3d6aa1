"""The C++ runtime under sanitizers: random matrices, random decoders and batches, random sampling.

AVX-512 is emulated where the processor lacks it (emulate.hpp), so every kernel runs on every machine. Each test takes
seconds; with `make fuzz`, a minute. Objects are kept in build/sanitizers, so that only what changed is compiled again.
"""

import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import ROOT

HERE = Path(__file__).parent
NATIVE = ROOT / "server/engine/native"
MATRICES = [f"kernels/matrices/{name}" for name in ("rounded_input", "portable", "tiles", "multiplier")]
MATRICES += ["base/pool", "kernels/instruction_set"]
STEP = ["base/mapping", "step/model", "step/step", "kernels/rows/row_kernels", "kernels/rows/portable"]
VECTORS = [f"kernels/matrices/avx2/{name}" for name in ("codes_gemv", "codes_gemm", "bf16")]
VECTORS += [f"kernels/matrices/avx512/{name}" for name in ("codes", "dense_codes", "bf16")]
VECTOR_ROWS = ["kernels/rows/avx2", "kernels/rows/avx512"]
FLAGS = ["-std=c++20", "-O1", "-g1", "-ffp-contract=off", "-Wno-psabi", f"-I{NATIVE}", f"-I{HERE}"]
AVX512 = ["f", "bw", "dq", "vl", "vbmi", "vbmi2", "vnni", "bf16"]
HAS_AVX512 = {f"avx512{part}" for part in AVX512} <= set(Path("/proc/cpuinfo").read_text().replace("_", "").split())
WIDE = ["-DSECATEUR_AVX2", "-DSECATEUR_AVX512", "-mavx2", "-mfma", "-mf16c", "-mbmi2", "-mpopcnt"]
WIDE += [] if HAS_AVX512 else ["-DSECATEUR_EMULATE"]
# Without AVX-512 the row kernels still use vectors of 16 lanes, which the compiler splits.
SIXTEEN_LANES = [f"-mavx512{part}" for part in AVX512] if HAS_AVX512 else ["-D__AVX512F__"]
SECONDS = os.environ.get("SECATEUR_FUZZ_SECONDS", "3")
SEED = os.environ.get("SECATEUR_FUZZ_SEED", "1")

Build = Callable[[str, Iterable[str], list[str], str], Path]


@pytest.fixture(scope="module")
def build() -> Build:
    """Compiles fuzzers with the runtime's sources, each source once per sanitizer."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None or platform.machine() != "x86_64":
        pytest.skip("there is no C++ compiler for x86-64")
    folder = objects_folder(compiler)

    def compiled(source: Path, flags: list[str]) -> str:
        name = source.relative_to(ROOT).with_suffix("").as_posix()
        emulated = not HAS_AVX512 and not name.endswith("rows/avx512")
        extra = SIXTEEN_LANES if "avx512" in name and not emulated else []
        command = [compiler, *FLAGS, *flags, *extra, "-c", str(source)]
        target = folder / f"{digest(' '.join(command).encode(), source.read_bytes())}.o"
        if not target.exists():
            made = target.with_suffix(f".{os.getpid()}.partial")
            subprocess.run([*command, "-o", made], check=True)
            made.replace(target)
        return str(target)

    def build(program: str, names: Iterable[str], flags: list[str], sanitizer: str) -> Path:
        # The program and its slow reference are not instrumented; the buffers that they pass on are still checked.
        sanitized = [f"-fsanitize={sanitizer}"] if sanitizer else ["-O2"]
        checked = [*flags, *sanitized, "-fno-sanitize-recover=all"]
        jobs = [(NATIVE / f"{name}.cpp", checked) for name in names] + [(HERE / f"{program}.cpp", flags)]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            objects = list(threads.map(lambda job: compiled(*job), jobs))
        target = folder / f"{program}-{sanitizer or 'plain'}-{os.getpid()}"
        subprocess.run([compiler, *sanitized, *objects, "-pthread", "-o", target], check=True)
        return target

    return build


def objects_folder(compiler: str) -> Path:
    """The folder of objects for this compiler and these headers; removes those of others."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    headers = sorted([*NATIVE.rglob("*.hpp"), *HERE.glob("*.hpp")])
    folder = ROOT / "build/sanitizers" / digest(version, *(header.read_bytes() for header in headers))
    folder.mkdir(parents=True, exist_ok=True)
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    return folder


def digest(*contents: bytes) -> str:
    return hashlib.sha256(b"".join(contents)).hexdigest()[:16]


def run(program: Path) -> str:
    # GCC 12 misaligns vectors of 64 bytes with use-after-return detection (its bug 110027).
    options = {"ASAN_OPTIONS": "detect_stack_use_after_return=0"}
    done = subprocess.run([program, SECONDS, SEED], capture_output=True, text=True, env={**os.environ, **options})
    program.unlink()
    assert done.returncode == 0, f"seed {SEED}: {done.stdout}{done.stderr}"
    return done.stdout


def test_random_matrices_agree_and_no_memory_is_misused(build: Build) -> None:
    program = build("fuzz", MATRICES + VECTORS, WIDE, "address,undefined")
    assert "cases agree on avx512 avx2 portable" in run(program)


def test_random_decoders_agree_and_no_memory_is_misused(build: Build) -> None:
    program = build("fuzz_step", MATRICES + VECTORS + STEP + VECTOR_ROWS, WIDE, "address,undefined")
    assert "decoders agree on avx512 avx2 portable" in run(program)


def test_threads_of_a_step_do_not_race(build: Build) -> None:
    program = build("fuzz_step", MATRICES + STEP, [], "thread")  # one instruction set: all share work alike
    assert "decoders agree on portable" in run(program)


def test_every_part_of_a_round_is_done_once(build: Build) -> None:
    # Without a sanitizer it is fastest, and threads meet most often.
    assert "rounds were whole" in run(build("fuzz_pool", ["base/pool"], [], ""))
    assert "rounds were whole" in run(build("fuzz_pool", ["base/pool"], [], "thread"))


def test_random_rows_are_sampled_alike_and_no_memory_is_misused(build: Build) -> None:
    program = build(
        "fuzz_sampling",
        ["sampling/sampling", "kernels/rows/portable", "kernels/rows/avx2"],
        WIDE,
        "address,undefined",
    )
    assert "rows agree" in run(program)
