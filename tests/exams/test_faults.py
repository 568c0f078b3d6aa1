"""The short version of each exam of `make exam-faults`; durations are printed there and asserted nowhere."""

from pathlib import Path

import pytest

from tests.exams.faults import SOME, figures, main
from tests.exams.hostile import crowd, secrets
from tests.exams.outages import clock, kill, stages, storage


def test_a_kill_9_leaves_an_exact_ledger(tmp_path: Path) -> None:
    found = kill.exam(tmp_path, rounds=2, streams=8)
    assert (found.wrong, found.missing, found.damaged, found.different) == (0, 0, 0, 0)
    assert found.ahead <= 1
    assert found.settled + found.cut > 0


def test_a_kill_9_leaves_an_exact_ledger_in_postgresql_too(tmp_path: Path) -> None:
    found = kill.on_postgres(tmp_path, rounds=2, streams=8)
    if found is None:
        pytest.skip("PostgreSQL is not installed: tests/install does it")
    assert (found.wrong, found.missing, found.different) == (0, 0, 0)
    assert found.ahead <= 1
    assert found.settled + found.cut > 0


def test_a_budget_is_used_to_its_last_token_and_not_exceeded(tmp_path: Path) -> None:
    found = crowd.race(tmp_path, requests=50)
    assert found.good, figures(found)


def test_clients_that_vanish_leave_nothing_behind(tmp_path: Path) -> None:
    found = crowd.vanish(tmp_path, clients=40)
    assert (found.unsettled, found.running, found.waiting, found.cache) == (0, 0, 0, 0)
    assert found.descriptors <= 0


def test_a_full_disk_is_answered_503_and_loses_nothing(tmp_path: Path) -> None:
    found = storage.full(tmp_path, seconds=0.5)
    if found is None:
        pytest.skip("only root may mount a small file system")
    assert (found.other, found.crashed, found.cut, found.wrong, found.different) == (0, False, 0, 0, 0)
    assert found.refused > 0


def test_a_locked_database_is_answered_503_and_loses_nothing(tmp_path: Path) -> None:
    found = storage.locked(tmp_path, seconds=0.5)
    assert (found.other, found.crashed, found.cut, found.wrong, found.different) == (0, False, 0, 0, 0)
    assert found.refused > 0


def test_clock_jumps_affect_neither_durations_nor_budgets(tmp_path: Path) -> None:
    found = clock.exam(tmp_path, requests=16)
    assert found.good, figures(found)


def test_planted_secrets_are_in_no_file_line_or_answer(tmp_path: Path) -> None:
    found = secrets.exam(tmp_path)
    assert found.good, figures(found)


def test_the_command_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nothing of this name"]) == 0
    assert capsys.readouterr().out.split() == ["fault", "holds", "seconds", "figures"]
    assert "ratio 0.99" in figures(storage.Cost(99.0, 100.0))


def test_a_killed_stage_and_a_full_disk_end_with_the_same_bytes(tmp_path: Path) -> None:
    found = stages.exam(tmp_path, SOME, kills=2, growth=0.5)
    if found is None:
        pytest.skip("only root may mount a small file system")
    assert (found.unsaid, found.died, found.left, found.different) == (0, 0, 0, 0)
    assert found.full > 0
