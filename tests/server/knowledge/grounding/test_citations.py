import pytest

from server.knowledge.grounding.citations import citations, sentences, supported
from server.knowledge.passages import Passage

HOURS = Passage("The shop is open from nine to five on weekdays, and closed on Sundays.", "Opening hours", "hours.html")
RETURNS = Passage("Bring the parcel and its receipt to any counter within thirty days.", "Returns", "returns.html")


def test_only_passages_that_the_reply_overlaps_are_cited_with_the_span_of_their_sentences() -> None:
    reply = "Of course! The shop opens at nine and is closed on Sundays. I hope that helps."
    assert [(one.passage, reply[one.start : one.end]) for one in citations(reply, [RETURNS, HOURS])] == [
        (HOURS, "The shop opens at nine and is closed on Sundays.")
    ]


def test_each_sentence_is_cited_to_its_best_passage_in_the_order_of_the_reply() -> None:
    reply = "Bring the parcel to any counter. The shop is open from nine to five.\n- Bring it within thirty days."
    found = citations(reply, [HOURS, RETURNS])
    assert [one.passage for one in found] == [RETURNS, HOURS]
    assert reply[found[0].start : found[0].end] == reply


@pytest.mark.parametrize("reply", ["", "Hello!", "The shop.", "Our prices are low and our staff is friendly.", "…"])
def test_a_reply_without_overlap_cites_nothing(reply: str) -> None:
    assert citations(reply, [HOURS, RETURNS]) == []
    assert citations(reply, []) == []


def test_support_is_the_share_of_words_in_supported_sentences() -> None:
    assert supported("The shop is open on weekdays.", [HOURS]) == 1.0
    assert supported("Elephants remember everything.", [HOURS]) == 0.0
    half = supported("The shop is open on weekdays. Elephants remember everything.", [HOURS])
    assert half == pytest.approx(0.5)
    assert supported("", [HOURS]) == 0.0


def test_numbers_and_addresses_do_not_end_a_sentence() -> None:
    text = "Version 1.2 is at example.org. Get it!\nNow"
    assert [text[a:b] for a, b in sentences(text)] == ["Version 1.2 is at example.org.", "Get it!", "Now"]
