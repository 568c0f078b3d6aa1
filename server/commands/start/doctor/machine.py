"""Checks of the machine: cores, instructions, memory, clock."""

import os
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import server
from server.commands.start.doctor.finding import Finding
from server.engine.native import absent, core, resources
from server.engine.native.pages import available

CPU = Path("/proc/cpuinfo")
LEAST_MEMORY = 1 << 30
INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "VNNI",
    "avx512_vbmi2": "VBMI2",
    "avx512_bf16": "BF16",
    "amx_int8": "AMX (not used)",
}


def machine() -> Iterator[Finding]:
    """Every check of the machine."""
    yield from cores()
    yield from instructions()
    yield from memory()
    yield clock(datetime.now(UTC))


def cores() -> Iterator[Finding]:
    """The cores that the process may use, by affinity and control group, and the threads that follow from them."""
    threads, reason = resources.choose_threads()
    found = f"{reason}; {threads} {'threads compute' if threads > 1 else 'thread computes'}"
    quota = resources.cores_allowed()
    if quota is not None and quota < 2:
        yield Finding("cores", "warning", found, "Allow two cores or more: one serves HTTP, the others compute.")
    elif len(os.sched_getaffinity(0)) < 2:
        yield Finding("cores", "warning", found, "With one core, HTTP waits for the computation.")
    else:
        yield Finding("cores", "ok", found)


def instructions(cpu: Path = CPU) -> Iterator[Finding]:
    """The processor's instructions, and the kernels that are chosen by them."""
    flags = set(cpu.read_text().split()) if cpu.exists() else set()
    has = [name for flag, name in INSTRUCTIONS.items() if flag in flags]
    known = ", ".join(has) or f"none of {', '.join(INSTRUCTIONS.values())}"
    if reason := absent():
        yield Finding("native runner", "warning", reason, "Without it transformers serves, several times slower.")
        yield Finding("instructions", "ok", f"{platform.machine()}: {known}")
        return
    chosen, why = core().choose("")
    yield Finding("native runner", "ok", "built")
    slow = chosen.name == "portable"
    remedy = "Kernels for this processor are plain C++: expect a tenth of the speed of AVX-512." if slow else ""
    yield Finding("instructions", "warning" if slow else "ok", f"{known}; kernels: {chosen.name} ({why})", remedy)


def memory() -> Iterator[Finding]:
    """The memory that is free for weights and cache, within the control group's limit."""
    free = available()
    found = f"{free >> 20} MB are free"
    if free < LEAST_MEMORY:
        yield Finding("memory", "warning", found, "Torch alone takes about half of a GB: allow 1 GB beside the model.")
    else:
        yield Finding("memory", "ok", found)


def clock(now: datetime) -> Finding:
    """Whether the clock is behind the installed package, which would refuse sessions and count the wrong days."""
    installed = datetime.fromtimestamp(Path(server.__file__).stat().st_mtime, UTC)
    found = now.isoformat(timespec="seconds")
    if now < installed:
        remedy = "Set the clock: sessions, expiry of keys and budgets of days follow it."
        return Finding("clock", "failed", f"{found}, before this package was installed ({installed:%Y-%m-%d})", remedy)
    return Finding("clock", "ok", found)
