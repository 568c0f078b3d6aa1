"""`make exam-aarch64`: the C++ runtime for 64-bit Arm, cross-compiled and fuzzed under qemu's user mode.

Every instruction set must give the bits of the portable one, on processors with and without dot products of bytes.
Needs Debian's g++-aarch64-linux-gnu and qemu-user; takes some minutes.
"""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[5]
HERE = Path(__file__).parent
NATIVE = ROOT / "server/engine/native"
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
FLAGS = ["-std=c++20", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-psabi", "-DSECATEUR_NEON"]
FLAGS += [f"-I{NATIVE}", f"-I{HERE}"]
OTHERS = ("avx2", "avx512", "bindings", "CMakeFiles")
PROGRAMS = ("fuzz", "fuzz_step", "fuzz_pool")
PROCESSORS = ("cortex-a53", "cortex-a76", "max")
"""Without dot products, with them, and with all that qemu knows."""
SECONDS = os.environ.get("SECATEUR_FUZZ_SECONDS", "10")


def sources() -> list[Path]:
    """The runtime's sources for this processor, without the bindings."""
    found = (path.relative_to(NATIVE) for path in sorted(NATIVE.rglob("*.cpp")))
    return [path for path in found if not any(part.removesuffix(".cpp") in OTHERS for part in path.parts)]


def compiled(source: Path, folder: Path) -> Path:
    """The object of `source`."""
    target = folder / f"{'-'.join(source.with_suffix('').parts[-3:])}.o"
    dots = ["-march=armv8.2-a+dotprod"] if source.stem == "dotprod" else []
    subprocess.run([COMPILER, *FLAGS, *dots, "-c", NATIVE / source, "-o", target], check=True)
    return target


def main() -> int:
    """Compile, run every program on every processor, and print what each says; returns 1 if one fails."""
    if missing := [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]:
        print(f"{missing[0]} is missing: apt-get install g++-aarch64-linux-gnu qemu-user", file=sys.stderr)
        return 2
    folder = ROOT / "build/aarch64"
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        objects = list(threads.map(lambda source: compiled(source, folder), sources()))
        mains = list(threads.map(lambda name: compiled(HERE / f"{name}.cpp", folder), PROGRAMS))
    failed = False
    for name, main in zip(PROGRAMS, mains, strict=True):
        program = folder / name
        subprocess.run([COMPILER, "-static", main, *objects, "-pthread", "-o", program], check=True)
        for processor in PROCESSORS:
            command: list[str | Path] = [EMULATOR, "-cpu", processor, program, SECONDS, "1"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            failed |= done.returncode != 0
            print(f"{name} on {processor}: {(done.stdout + done.stderr).strip()}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
