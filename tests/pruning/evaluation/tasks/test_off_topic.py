"""The off-topic questions of the examples."""

from server.knowledge.calibration.thresholds import off_topic
from tests.conftest import ROOT


def test_no_threshold_was_calibrated_with_them() -> None:
    questions = (ROOT / "examples/tasks/off-topic.txt").read_text().splitlines()
    assert len(set(questions)) == 40
    assert not set(questions) & set(off_topic())
