import numpy
import pytest

from server.knowledge.calibration import thresholds
from server.knowledge.calibration.thresholds import calibrated, nearest_questions, off_topic, probes, relevance
from server.knowledge.index.schema import Entry, Row
from server.knowledge.passages import Passage


def row(text: str, *headings: str, question: str = "") -> Row:
    passage = Passage(text, "Title", "u", headings, question)
    return Row(Entry("n", "u", "Title", "", "en", (), (passage,)), passage)


def test_the_limit_refuses_other_subjects_and_lies_in_the_middle_of_the_room() -> None:
    off = [n / 1000 for n in range(100)]  # at most .099
    found, calibration = calibrated([0.5 + n / 100 for n in range(20)], off, [], "cosine")
    assert 0.25 < found.on_topic < 0.35
    assert (calibration.on_topic_refused, calibration.off_topic_refused) == (0.0, 1.0)
    found, calibration = calibrated([0.01 * n for n in range(20)], off, [], "cosine")  # no room
    assert calibration.off_topic_refused >= 0.95
    assert found.on_topic == pytest.approx(0.0951, abs=1e-3)


def test_with_few_own_questions_the_limit_is_the_packages_own_and_says_so() -> None:
    found, calibration = calibrated([0.9] * 4, [0.1] * 100, [], "cosine")
    assert found.on_topic == thresholds.DEFAULT_ON_TOPIC["cosine"]
    assert "fewer than 5" in calibration.note


def test_equal_questions_lie_above_the_nearest_different_ones() -> None:
    assert calibrated([], [], [0.3, 0.5], "cosine")[0].same_question == 0.85
    assert calibrated([], [], [0.3] * 50 + [0.93] * 50, "cosine")[0].same_question == pytest.approx(0.95)
    assert calibrated([], [], [1.0, 0.99], "cosine")[0].same_question == 0.9  # one question on two pages


def test_a_probe_is_a_heading_or_question_and_its_passage_without_it() -> None:
    rows = [
        row("Text.", "Above", "How long is it"),
        row("Other.", "Short"),
        row("Answer.", question="What is it then?"),
    ]
    found = {probe.row: (probe.question, probe.rest) for probe in probes(rows)}
    assert found == {0: ("How long is it", "Title\nAbove\nText."), 2: ("What is it then?", "Title\nAnswer.")}


def test_headings_are_left_out_where_there_are_questions_enough() -> None:
    rows = [row("a", "One two three"), *(row("b", question=f"Question number {n}?") for n in range(30))]
    assert {probe.row for probe in probes(rows)} == set(range(1, 31))


def test_relevance_is_the_best_cosine_with_the_own_passage_replaced() -> None:
    draw = numpy.random.default_rng(1)
    asked, rests, passages = (draw.standard_normal((n, 4)).astype(numpy.float32) for n in (3, 3, 9000))
    own = [0, 5000, 8999]
    expected = []
    for number, place in enumerate(own):
        changed = passages.copy()
        changed[place] = rests[number]
        expected.append(float((changed @ asked[number]).max()))
    assert relevance(asked, rests, passages, own) == pytest.approx(expected, rel=1e-5)


def test_a_question_is_not_its_own_neighbour() -> None:
    assert nearest_questions(numpy.eye(3, dtype=numpy.float32)) == [0.0, 0.0, 0.0]
    assert nearest_questions(numpy.eye(1, dtype=numpy.float32)) == []


def test_the_questions_of_other_subjects_are_a_hundred_different_ones() -> None:
    assert len(set(off_topic())) == len(off_topic()) == 100
