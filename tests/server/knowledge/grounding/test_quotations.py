"""What a reply may quote; the grammar is tried with llguidance's own matcher on the reply's bytes."""

import json

import llguidance
import pytest

from server.knowledge.grounding.quotations import FOLLOWING, LONGEST, Quotation, quotations, quoting_grammar
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


class Bytes:
    """A tokenizer with one token per byte, as llguidance reads tokenizers."""

    eos_token_id, bos_token_id, unk_token_id = 256, None, None

    def __init__(self) -> None:
        self.tokens = [*(bytes([byte]) for byte in range(256)), b"<end>"]
        self.special_token_ids = [256]

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def accepts(grammar: str, text: str) -> bool:
    """Whether `text` is all of a reply by `grammar`."""
    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()))
    matcher = llguidance.LLMatcher(tokenizer, llguidance.LLMatcher.grammar_from_lark(grammar))
    return all(matcher.consume_tokens([byte]) for byte in text.encode()) and matcher.is_accepting()


@pytest.mark.parametrize("count", range(1, FOLLOWING + 2))
def test_a_reply_is_a_run_of_sentences_that_begins_with_one_of_the_best(count: int) -> None:
    known = quotations([Passage(TEXT, "Shop", "u")])
    grammar = quoting_grammar([known[0], known[3]], known)
    assert accepts(grammar, " ".join(SENTENCES[:count]))
    assert accepts(grammar, " ".join(SENTENCES[3 : 3 + count]))
    assert not accepts(grammar, " ".join(SENTENCES[1 : 1 + count]))
    assert not accepts(grammar, " ".join(SENTENCES[:count]) + " And more.")
    assert not accepts(grammar, " ".join(SENTENCES[: FOLLOWING + 2]))


def test_quotes_and_line_breaks_are_no_syntax_of_the_grammar() -> None:
    odd = 'He said: "\\d+ | start: /x/" and left.\n\n```\na "b" \\ c\n```'
    quotation = Quotation(odd, 0, 0)
    assert accepts(quoting_grammar([quotation], [quotation]), odd)
    assert not accepts(quoting_grammar([quotation], [quotation]), json.dumps(odd))
