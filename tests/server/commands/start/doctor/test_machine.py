"""Checks of the machine."""

from datetime import UTC, datetime
from pathlib import Path

from server.commands.start.doctor.machine import clock, instructions, machine


def test_every_part_of_the_machine_is_looked_at() -> None:
    assert {finding.check for finding in machine()} == {"cores", "native runner", "instructions", "memory", "clock"}


def test_a_clock_behind_the_installation_fails() -> None:
    assert clock(datetime.now(UTC)).state == "ok"
    assert clock(datetime(2001, 1, 1, tzinfo=UTC)).state == "failed"


def test_the_processors_instructions_are_named(tmp_path: Path) -> None:
    cpu = tmp_path / "cpuinfo"
    cpu.write_text("flags : fpu avx2 amx_int8")
    (found,) = [finding.found for finding in instructions(cpu) if finding.check == "instructions"]
    assert found.startswith("AVX2, AMX (not used)")
    assert "AVX-512" not in found.split(";")[0]
