import pytest

from server import progress
from server.progress import Progress


def test_without_a_terminal_occasional_lines_appear(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0.0, 1.0, 30.0, 31.0, 60.0])
    monkeypatch.setattr(progress, "monotonic", lambda: next(times))
    with Progress("pruning", 10, done=6) as bar:
        for _ in range(4):
            bar.step()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "pruning: 80%, about 30 s left\npruning: 100%, about 0 s left\n"


def test_on_a_terminal_a_bar_shows_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress("pruning", 2) as bar:
        bar.step()
        bar.step()
    captured = capsys.readouterr().err
    assert "pruning 100%" in captured
    assert "left" in captured
