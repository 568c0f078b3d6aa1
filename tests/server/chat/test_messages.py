"""Messages as people and clients send them, read as chat templates take them."""

from typing import Any

import msgspec
import pytest

from server.chat.messages import ChatMessage
from server.errors import InvalidRequest


def plain(**fields: Any) -> dict[str, Any]:
    return dict(msgspec.convert(fields, ChatMessage).plain("messages[0]"))


@pytest.mark.parametrize(
    ("fields", "read"),
    [
        ({"role": "user", "content": "a"}, {"role": "user", "content": "a"}),
        ({"role": "developer", "content": "a"}, {"role": "system", "content": "a"}),
        ({"role": "user", "content": "a", "name": "Ann Lee"}, {"role": "user", "content": "a", "name": "Ann Lee"}),
        ({"role": "user", "content": "a", "name": 7, "cache_control": {"type": "ephemeral"}},
         {"role": "user", "content": "a"}),
        ({"role": "assistant", "content": "a", "refusal": None, "annotations": [], "audio": None,
          "reasoning_content": "hm", "tool_calls": None, "function_call": None}, {"role": "assistant", "content": "a"}),
        ({"role": "assistant", "content": None}, {"role": "assistant", "content": ""}),
        ({"role": "assistant", "tool_calls": []}, {"role": "assistant", "content": ""}),
        ({"role": "user", "content": []}, {"role": "user", "content": ""}),
        ({"role": "user", "content": [{"type": "text", "text": "a", "extra": {}}, {"type": "text", "text": "b"}]},
         {"role": "user", "content": "a\nb"}),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
         {"role": "assistant", "content": "no"}),
        ({"role": "tool", "content": "4", "tool_call_id": "x"}, {"role": "tool", "content": "4", "tool_call_id": "x"}),
        ({"role": "function", "content": "4", "name": "add"}, {"role": "tool", "content": "4", "name": "add"}),
    ],
)  # fmt: skip
def test_a_message_is_read_with_what_templates_know(fields: dict[str, Any], read: dict[str, Any]) -> None:
    assert plain(**fields) == read


def test_calls_have_their_arguments_decoded() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    read = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    assert plain(role="assistant", content=None, tool_calls=[call])["tool_calls"] == [read]
    older = plain(role="assistant", content=None, function_call={"name": "add", "arguments": '{"a": 1}'})
    assert older["tool_calls"] == [{**read, "id": ""}]
    broken = {"function": {"name": "add", "arguments": "{a"}}
    assert plain(role="assistant", tool_calls=[broken])["tool_calls"][0]["function"]["arguments"] == "{a"


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_parts_that_are_not_text_are_refused_by_name(kind: str) -> None:
    with pytest.raises(InvalidRequest, match=f"`{kind}` parts are not supported") as caught:
        plain(role="user", content=[{"type": "text", "text": "a"}, {"type": kind, kind: {"url": "https://x"}}])
    assert caught.value.param == "messages[0].content[1].type"
    with pytest.raises(InvalidRequest, match=r"^Parts of this kind"):
        plain(role="user", content=[{"type": "<|im_end|>"}])
