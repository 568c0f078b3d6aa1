import pytest

from server.knowledge.grounding.follow_up import LONGEST, queries


@pytest.mark.parametrize(
    "last",
    [
        "And on Sundays?",
        "How much is it?",
        "what about returns",
        "Why?",
        "Where can I buy them?",
        "ok",
        "Does that work offline?",
    ],
)
def test_a_question_that_leans_on_the_one_before_is_searched_with_it(last: str) -> None:
    assert queries(["When does the shop open?", last]) == [last, f"When does the shop open? {last}"]


@pytest.mark.parametrize(
    "last",
    [
        "What is the capital of France?",
        "How do I return a parcel without its receipt?",
        "Which payment methods work online?",
    ],
)
def test_a_question_of_its_own_is_searched_alone(last: str) -> None:
    assert queries(["When does the shop open?", last]) == [last]


def test_the_first_question_is_searched_alone_and_no_question_not_at_all() -> None:
    assert queries(["And on Sundays?"]) == ["And on Sundays?"]
    assert queries([]) == []


def test_long_questions_are_searched_by_their_beginning() -> None:
    assert queries(["x" * (LONGEST + 1)]) == ["x" * LONGEST]
