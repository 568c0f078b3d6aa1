"""The build of the C++ runtime: every source is in it, and none is compiled for this machine alone."""

import re

from tests.conftest import ROOT

NATIVE = ROOT / "server/engine/native"
BUILD = (NATIVE / "CMakeLists.txt").read_text()


def test_every_source_is_built() -> None:
    folders = ("base", "bindings", "kernels", "sampling", "step")
    sources = {path.relative_to(NATIVE).as_posix() for folder in folders for path in (NATIVE / folder).rglob("*.cpp")}
    assert set(re.findall(r"[\w/]+\.cpp", BUILD)) == sources


def test_no_source_is_compiled_for_this_machine_alone() -> None:
    assert "native" not in re.findall(r"-m(?:arch|cpu|tune)=([\w.+-]+)", BUILD)
