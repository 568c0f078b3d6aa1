"""Calls read from a reply, however its text is cut into pieces."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.chat.tools.calls import CallReader, whole_calls
from server.text.tool_form import HERMES, ToolForm

BARE = ToolForm('{"name": "', '", "parameters": ', "}", None)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='ab{}[]"\\</tool_cal>\n', max_size=30),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='a"{}\\', max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
CALLS = st.lists(st.tuples(st.from_regex(r"[A-Za-z0-9_-]{1,10}", fullmatch=True), st.dictionaries(st.text(), VALUES)))
TEXTS = st.text(alphabet="ab <>/{}_tol\n", max_size=40).filter(lambda text: "<tool_call>" not in text)


def read(reader: CallReader, text: str, cuts: list[int]) -> tuple[str, list[tuple[str, str]]]:
    """The own text, and name and arguments of each call."""
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    own, parts = "", []
    for start, end in pairwise(places):
        piece, found = reader.push(text[start:end])
        own += piece
        parts += found
    piece, found = reader.push("", last=True)
    calls = whole_calls([*parts, *found])
    assert len({call.id for call in calls}) == len(calls)
    assert all(call.id.startswith("call_") for call in calls)
    return own + piece, [(call.name, call.arguments) for call in calls]


@given(TEXTS, CALLS, st.lists(st.integers(min_value=0)))
def test_text_and_calls_are_told_apart_wherever_pieces_are_cut(
    text: str, calls: list[tuple[str, dict[str, object]]], cuts: list[int]
) -> None:
    made = [(name, json.dumps(arguments)) for name, arguments in calls]
    whole = text + "\n".join(HERMES.written(*call) for call in made)
    assert read(CallReader(HERMES, required=False), whole, cuts) == (text, made)


@given(CALLS.filter(bool), st.lists(st.integers(min_value=0)))
def test_required_calls_begin_the_reply(calls: list[tuple[str, dict[str, object]]], cuts: list[int]) -> None:
    made = [(name, json.dumps(arguments)) for name, arguments in calls]
    whole = "\n".join(HERMES.written(*call) for call in made)
    assert read(CallReader(HERMES, required=True), whole, cuts) == ("", made)


@given(st.lists(st.integers(min_value=0)))
def test_bare_json_is_a_call_only_at_the_beginning(cuts: list[int]) -> None:
    call = BARE.written("add", '{"a": {"b": "}"}}')
    assert read(CallReader(BARE, required=False), call, cuts) == ("", [("add", '{"a": {"b": "}"}}')])
    assert read(CallReader(BARE, required=False), "So " + call, cuts) == ("So " + call, [])


@given(st.lists(st.integers(min_value=0)))
def test_a_reply_of_json_may_spell_a_call_within_a_string(cuts: list[int]) -> None:
    reply = json.dumps({"text": HERMES.written("add", "{}")})
    assert read(CallReader(HERMES, required=False, alone=True), reply, cuts) == (reply, [])
    call = HERMES.written("add", "{}")
    assert read(CallReader(HERMES, required=False, alone=True), call, cuts) == ("", [("add", "{}")])


@pytest.mark.parametrize("size", range(60))
def test_a_reply_that_was_cut_off_keeps_what_is_known(size: int) -> None:
    """As at `max_tokens`: the name once it is whole, and the arguments so far."""
    whole = HERMES.written("add", '{"a": 1}')
    own, calls = read(CallReader(HERMES, required=True), whole[:size], [])
    assert own == ""
    assert calls in ([], [("add", '{"a": 1}'[: max(0, size - len(whole.partition('{"a"')[0]))])])


def test_arguments_are_streamed_as_they_come() -> None:
    reader = CallReader(HERMES, required=True)
    begun = HERMES.before + "add" + HERMES.middle
    _, [first] = reader.push(begun)
    assert (first.number, first.name, first.arguments) == (0, "add", "")
    assert [part.arguments for text in ('{"a"', ": 1", "}", HERMES.after) for part in reader.push(text)[1]] == [
        '{"a"', ": 1", "}",
    ]  # fmt: skip
