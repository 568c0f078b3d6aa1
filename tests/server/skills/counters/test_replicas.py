"""Two servers in processes of their own on one PostgreSQL and one Redis, the short form of the exam of replicas."""

from pathlib import Path

import pytest

from tests.exams.outages.replicas import exam

pytestmark = pytest.mark.slow


def test_limits_of_a_key_hold_over_two_replicas(tmp_path: Path) -> None:
    rows = list(exam(tmp_path, budget=2000, seconds=2.0, lease=6))
    if not rows:
        pytest.skip("PostgreSQL or Redis is not installed: tests/install")
    assert len(rows) == 9
    assert not [row for row in rows if not row.held]
