import pytest

from server.knowledge.grounding.quotations import FOLLOWING, LONGEST, quotations, runs
from server.knowledge.passages import Passage

TEXT = """The shop opens at nine and
closes at five. On Sundays it is closed!

- Bring the receipt, please.
- Short.

| a | table |
# A heading

Print the label:

```sh
print label
```

Is version 1.2 e.g. supported? Yes it is."""
SENTENCES = [
    "The shop opens at nine and closes at five.",
    "On Sundays it is closed!",
    "Bring the receipt, please.",
    "Print the label:\n\n```sh\nprint label\n```",
    "Is version 1.2 e.g. supported?",
    "Yes it is.",
]


def test_sentences_are_whole_without_tables_headings_and_single_words() -> None:
    assert [one.text for one in quotations([Passage(TEXT, "Shop", "u")])] == SENTENCES


def test_a_stored_answer_is_quoted_as_a_whole_unless_it_is_long() -> None:
    stored = Passage("Print it. Then bring it to us.", "T", "u", (), "How do I return it?")
    assert [one.text for one in quotations([stored])] == [stored.text]
    assert quotations([stored])[0].compared == f"How do I return it?\n{stored.text}"
    long = Passage("One two three four. " * (LONGEST // 10), "T", "u", (), "How?")
    assert [one.text for one in quotations([long])] == ["One two three four."]


def test_a_sentence_of_two_passages_is_quoted_once() -> None:
    assert (
        len(quotations([Passage("The same three words.", "A", "a"), Passage("The same three words.", "B", "b")])) == 1
    )


@pytest.mark.parametrize("first", [0, 3])
def test_a_reply_is_a_run_of_sentences_that_begins_with_one_of_the_best(first: int) -> None:
    known = quotations([Passage(TEXT, "Shop", "u"), Passage("Another passage says this.", "B", "b")])
    expected = [" ".join(SENTENCES[first : first + count]) for count in range(1, FOLLOWING + 2)]
    assert runs([known[first]], known) == expected
    assert set(runs([known[0], known[3]], known)) >= set(expected)


def test_a_run_ends_with_its_passage() -> None:
    known = quotations([Passage(TEXT, "Shop", "u"), Passage("Another passage says this.", "B", "b")])
    assert runs(known[-2:], known) == ["Yes it is.", "Another passage says this."]
