"""The short version of each attack of `make exam-attack`; the probe of the prefix cache has tests of its own."""

import pytest

from tests.exams.attack import attacks, main

PROBE = "prefix cache probed"


@pytest.mark.parametrize("name", [name for name in attacks(quick=True) if name != PROBE])
def test_an_attack_is_held(name: str) -> None:
    rows = list(attacks(quick=True)[name]())
    assert rows
    assert not [row for row in rows if not row.held]


def test_a_row_beyond_its_bound_ends_with_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.exams.hostile.cache_probe.find_artifact", lambda: None)
    assert main(["prefix cache"]) == 1
    assert "NO  the prefix cache was probed" in capsys.readouterr().out
    assert main(["nothing of this name"]) == 0
