"""What a request offers to call, in each of OpenAI's forms."""

from typing import Any

import msgspec
import pytest

from server.chat.tools.offer import EMPTY, Asked, Offer, offer_of
from server.errors import InvalidRequest

ADD = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
NOW = {"name": "now"}
TOOLS = [{"type": "function", "function": ADD}, {"type": "function", "function": NOW}]


def offer(**fields: Any) -> Offer:
    return offer_of(msgspec.convert(fields, Asked))


def names(given: Offer) -> tuple[list[str], list[str], bool]:
    return [tool.name for tool in given.tools], [tool.name for tool in given.callable], given.required


@pytest.mark.parametrize(
    ("choice", "shown", "callable", "required"),
    [
        ("auto", ["add", "now"], ["add", "now"], False),
        ("required", ["add", "now"], ["add", "now"], True),
        ("none", [], [], False),
        ({"type": "function", "function": {"name": "now"}}, ["add", "now"], ["now"], True),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TOOLS[0]]}},
         ["add", "now"], ["add"], False),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": TOOLS}},
         ["add", "now"], ["add", "now"], True),
    ],
)  # fmt: skip
def test_a_choice_decides_what_may_be_called(
    choice: Any, shown: list[str], callable: list[str], required: bool
) -> None:
    assert names(offer(tools=TOOLS, tool_choice=choice)) == (shown, callable, required)


def test_the_older_names_offer_the_same_one_call_at_a_time() -> None:
    older = offer(functions=[ADD, NOW], function_call={"name": "add"})
    assert names(older) == (["add", "now"], ["add"], True)
    assert (older.legacy, older.parallel) == (True, False)
    assert names(offer(functions=[ADD])) == (["add"], ["add"], False)
    assert offer(tools=TOOLS).parallel is None
    assert offer(tools=TOOLS, parallel_tool_calls=True).parallel is True
    assert offer(tools=TOOLS, parallel_tool_calls=False).parallel is False
    named = {"type": "function", "function": {"name": "now"}}
    assert offer(tools=TOOLS, tool_choice=named, parallel_tool_calls=True).parallel is False


def test_nothing_is_offered_without_tools() -> None:
    assert offer() == offer(tools=[], tool_choice="auto") == offer(tool_choice="none") == Offer()


def test_a_function_without_parameters_takes_none() -> None:
    [add, now] = offer(tools=TOOLS).plain
    assert now["function"] == {"name": "now", "description": "", "parameters": EMPTY}
    assert add["function"]["parameters"] == ADD["parameters"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].function.name"),
        ({"functions": [ADD, ADD]}, "functions[1].name"),
        ({"tools": [{"type": "function", "function": {"name": "x", "parameters": {"type": "array"}}}]},
         "tools[0].function.parameters"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "nothing"}}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [ADD], "function_call": {"name": "nothing"}}, "function_call"),
        ({"tools": TOOLS, "functions": [ADD]}, "functions"),
        ({"functions": [{"name": f"f{index}"} for index in range(129)]}, "functions"),
    ],
)  # fmt: skip
def test_a_fault_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        offer(**fields)
    assert caught.value.param == param
