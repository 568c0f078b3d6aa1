from collections.abc import Sequence

from server.knowledge.grounding.grounding import NEAREST, Question, ground
from server.knowledge.passages import Passage
from server.knowledge.record import Thresholds
from server.knowledge.search import Found


class Shop:
    """Finds passages by the share of their keywords in the question."""

    thresholds = Thresholds(on_topic=0.4, same_question=0.9, measure="cosine")

    def __init__(self, **passages: Passage) -> None:
        self.passages = passages
        self.asked: list[tuple[str, frozenset[str]]] = []

    def search(self, question: str, limit: int, groups: frozenset[str]) -> list[Found]:
        self.asked.append((question, groups))
        found = []
        for number, (name, passage) in enumerate(self.passages.items()):
            relevance = sum(word in question.lower() for word in name.split("_")) / len(name.split("_"))
            same = 1.0 if passage.question and passage.question == question else 0.0
            found.append(Found(number, passage, relevance, relevance, relevance, relevance, same))
        return sorted(found, key=lambda one: -one.score)[:limit]

    def compare(self, question: str, texts: Sequence[str]) -> list[float]:
        return [0.0 for _ in texts]


HOURS = Passage("From nine to five.", "Hours", "hours.html#week")
SUNDAYS = Passage("Closed on Sundays.", "Hours", "hours.html#sundays")
RETURNS = Passage("Bring the receipt.", "Returns", "returns.html", (), "How do I return a parcel?")


def shop() -> Shop:
    return Shop(open_shop=HOURS, sundays_shop_open_closed=SUNDAYS, return_parcel=RETURNS)


def test_passages_answer_a_question_on_topic() -> None:
    grounding = ground(shop(), Question(("When does the shop open?",)))
    assert (grounding.kind, grounding.relevance) == ("passages", 1.0)
    assert grounding.found[0].passage == HOURS
    assert grounding.seconds > 0


def test_a_question_off_topic_is_refused_without_links() -> None:
    grounding = ground(shop(), Question(("Who wrote Hamlet?",)))
    assert (grounding.kind, grounding.found, grounding.relevance) == ("refused", (), 0.0)


def test_a_refusal_links_to_the_nearest_documents_once_each() -> None:
    near = {f"near_a_b_c{n}": Passage("x", "T", f"page{n // 2}.html#{n}") for n in range(10)}
    grounding = ground(Shop(**near), Question(("a near question?",)))
    assert grounding.kind == "passages"  # the control: near enough with three of four words
    grounding = ground(Shop(**{name.replace("near", "far"): one for name, one in near.items()}), Question(("a",)))
    assert grounding.kind == "refused"
    documents = [one.passage.url.partition("#")[0] for one in grounding.found]
    assert documents == list(dict.fromkeys(documents))
    assert 0 < len(documents) <= NEAREST


def test_a_stored_question_is_answered_verbatim() -> None:
    grounding = ground(shop(), Question(("How do I return a parcel?",)))
    assert grounding.kind == "verbatim"
    assert [one.passage for one in grounding.found] == [RETURNS]


def test_a_follow_up_is_searched_with_the_question_before() -> None:
    asked = shop()
    assert ground(asked, Question(("And why?",))).kind == "refused"
    assert ground(asked, Question(("When does the shop open?", "And why?"))).kind == "passages"
    assert asked.asked[-1][0] == "When does the shop open? And why?"


def test_a_short_question_that_finds_something_alone_is_searched_alone() -> None:
    made = Shop(repair=Passage("Two days.", "Repairs", "repairs.html"), open=HOURS)
    asked = Question(("How long does a repair take?", "When are you open?"))
    assert ground(made, asked).found[0].passage == HOURS
    assert [question for question, _ in made.asked] == ["When are you open?"]
    ground(made, Question(("How long does a repair take?", "When is it open?")))
    assert made.asked[-1][0] == "How long does a repair take? When is it open?", "it points back"


def test_a_question_of_its_own_is_not_answered_from_the_one_before() -> None:
    asked = Question(("When does the shop open?", "Which author wrote Hamlet and Macbeth?"))
    assert ground(shop(), asked).kind == "refused"


def test_a_stored_question_is_answered_verbatim_also_after_another_and_no_earlier_one_again() -> None:
    asked = shop()
    assert ground(asked, Question(("How do I return a parcel?", "And why?"))).kind != "verbatim"
    assert ground(asked, Question(("When does the shop open?", "How do I return a parcel?"))).kind == "verbatim"


def test_every_search_is_for_the_callers_groups() -> None:
    asked = shop()
    ground(asked, Question(("When?", "And then?"), frozenset({"staff"})))
    assert {groups for _, groups in asked.asked} == {frozenset({"staff"})}
    assert len(asked.asked) == 2
