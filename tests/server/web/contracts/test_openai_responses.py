"""The Responses API by the official client, and every object validated by the client's own types."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from tests.server.web.test_listeners import call
from tests.support.harness import END, HELP, KEY, START, Serve, Served, ledger_of, says

TEXT = "Hello, world! Ünïcödé 🌱"
OURS = {"store", "outcome", "bytes"}
"""Fields that OpenAI sends or that are an addition of ours, which the client's types do not name."""


def connect(served: Served, key: str = KEY) -> OpenAI:
    return OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0)


@pytest.fixture
def client(serve: Serve) -> Iterator[OpenAI]:
    with connect(serve(TEXT)) as client:
        yield client


def post(served: Served, **fields: Any) -> Any:
    return call(served.url, "/v1/responses", {"model": "help", "input": "hi", **fields}, Authorization=f"Bearer {KEY}")


def events(served: Served, **fields: Any) -> list[tuple[str, dict[str, Any]]]:
    """Name and data of each event of a stream."""
    found = []
    for block in post(served, stream=True, **fields).content.decode().strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        found.append((lines["event"], json.loads(lines["data"])))
    return found


def unknown(value: Any) -> set[str]:
    """Every field, at any depth, that the client's types do not name."""
    if isinstance(value, BaseModel):
        inner = [getattr(value, name) for name in type(value).model_fields]
        return {*(value.model_extra or {})}.union(*map(unknown, inner)) if inner else {*(value.model_extra or {})}
    if isinstance(value, list):
        return set().union(*map(unknown, value))
    return set()


def check_order(kinds: list[str]) -> None:
    """The order of a message's events."""
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:-1] == ["response.output_text.done", "response.content_part.done", "response.output_item.done"]


@pytest.mark.parametrize(
    "fields", [{}, {"max_output_tokens": 5}, {"top_logprobs": 2, "include": ["message.output_text.logprobs"]}]
)
def test_every_object_is_valid_by_the_clients_types(serve: Serve, fields: dict[str, Any]) -> None:
    served = serve(TEXT)
    whole = Response.model_validate(post(served, metadata={"a": "b"}, **fields).json)
    assert unknown(whole) <= OURS
    told = events(served, metadata={"a": "b"}, **fields)
    parsed = [TypeAdapter[Any](ResponseStreamEvent).validate_python(data) for _, data in told]
    assert set().union(*map(unknown, parsed)) <= OURS
    assert [name for name, _ in told] == [data["type"] for _, data in told]
    assert [data["sequence_number"] for _, data in told] == list(range(len(told)))
    kinds = [name for name, _ in told]
    check_order(kinds)
    last = told[-1][1]["response"]
    assert kinds[-1] == f"response.{last['status']}" == f"response.{whole.status}"
    for name in ("output", "usage", "metadata", "incomplete_details"):
        alike = whole.model_dump(mode="json", by_alias=True)[name]
        shown = Response.model_validate(last).model_dump(mode="json", by_alias=True)[name]
        assert without_ids(alike) == without_ids(shown)


def without_ids(value: Any) -> Any:
    """`value` without ids, and without what the prefix cache changes."""
    if isinstance(value, dict):
        return {name: without_ids(inner) for name, inner in value.items() if name not in ("id", "cached_tokens")}
    return [without_ids(inner) for inner in value] if isinstance(value, list) else value


def test_whole(client: OpenAI) -> None:
    reply = client.responses.create(model="help", input="Say hello", metadata={"note": "x"}, store=True)
    assert reply.output_text == TEXT
    assert (reply.status, reply.model, reply.metadata) == ("completed", "help", {"note": "x"})
    assert reply.id.startswith("resp_")
    assert reply.usage is not None
    prompt = len("[system\nBe brief.]\n[user\nSay hello]\n[assistant\n")
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (prompt, len(TEXT.encode()) + 1)
    assert reply.usage.total_tokens == prompt + len(TEXT.encode()) + 1
    assert reply.usage.output_tokens_details.reasoning_tokens == 0
    assert getattr(reply, "store") is False  # noqa: B009  (the client's type lacks it)


def test_streamed(client: OpenAI) -> None:
    with client.responses.stream(model="help", input="Say hello") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == TEXT
    assert final.status == "completed"


def test_length_is_incomplete(client: OpenAI) -> None:
    reply = client.responses.create(model="help", input="Say hello", max_output_tokens=5)
    assert (reply.status, reply.output_text) == ("incomplete", "Hello")
    assert reply.incomplete_details is not None
    assert reply.incomplete_details.reason == "max_output_tokens"


def test_logprobs(client: OpenAI) -> None:
    reply = client.responses.create(
        model="help", input="Say hello", include=["message.output_text.logprobs"], top_logprobs=2, max_output_tokens=3
    )
    [message] = reply.output
    assert message.type == "message"
    [part] = message.content
    assert part.type == "output_text"
    assert part.logprobs is not None
    assert [token.token for token in part.logprobs] == list("Hel")
    assert [len(token.top_logprobs) for token in part.logprobs] == [2, 2, 2]


def test_items_become_the_conversation(serve: Serve) -> None:
    served = serve("ok")
    with connect(served) as client:
        first = client.responses.create(model="help", input=[{"role": "user", "content": "one"}])
        items: Any = [
            {"role": "developer", "content": "More."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "one"}]},
            *first.output,
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"role": "user", "content": "two"},
        ]
        reply = client.responses.create(model="help", instructions="Be kind.", input=items)
    expected = (
        f"{START}system\nBe brief.\n\nBe kind.\n\nMore.{END}\n{START}user\none{END}\n{START}assistant\nok{END}\n"
        f"{START}user\ntwo{END}\n{START}assistant\n"
    )
    assert reply.usage is not None
    assert reply.usage.input_tokens == len(expected.replace(START, "[").replace(END, "]"))


@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "keeps no responses"),
        ({"conversation": "conv_1"}, "conversation", "keeps no responses"),
        ({"background": True}, "background", "while its caller waits"),
        ({"truncation": "auto"}, "truncation", "drop the oldest items"),
        ({"input": []}, "input", "no message"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]", "keeps no responses"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type", "computer_call"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type", "text only"),
        ({"input": [{"role": "nobody", "content": "x"}]}, "input[0].role", "expected"),
        ({"instructions": "x", "input": [{"role": "user"}]}, "input[0].content", "input[0].content"),
        ({"max_output_tokens": 0}, "max_output_tokens", ">= 1"),
        ({"temperature": 3}, "temperature", "<= 2"),
        ({"messages": []}, None, "here it is `input`"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "web_search"),
        ({"include": ["nothing"]}, "include[0]", "Unknown value"),
        ({"metadata": {"a": "x" * 513}}, "metadata[...]", "512"),
        ({"nonsense": 1}, "nonsense", "Unknown field"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    serve: Serve, fields: dict[str, Any], param: str, text: str
) -> None:
    served = serve()
    answer = post(served, **fields)
    assert (answer.status, answer.json["error"]["param"]) == (400, param)
    assert text in answer.json["error"]["message"]
    assert ledger_of(served) == []


def test_counting_gives_what_is_billed(serve: Serve) -> None:
    served = serve("ok")
    with connect(served) as client:
        counted = client.responses.input_tokens.count(model="help", instructions="More.", input="hi")
        assert ledger_of(served) == []
        used = client.responses.create(model="help", instructions="More.", input="hi").usage
    assert used is not None
    assert (counted.object, counted.input_tokens) == ("response.input_tokens", used.input_tokens)


def test_an_overflow_names_the_input(serve: Serve) -> None:
    answer = post(serve(context=64), input="a" * 100)
    assert (answer.status, answer.json["error"]["param"]) == (400, "input")
    assert answer.json["error"]["code"] == "context_length_exceeded"


def test_what_asks_for_nothing_is_accepted(serve: Serve) -> None:
    fields = {"store": True, "background": False, "truncation": "disabled", "service_tier": "auto", "tools": []}
    more = {"tool_choice": "auto", "parallel_tool_calls": True, "reasoning": {"effort": "low"}, "user": "u"}
    text = {"text": {"format": {"type": "text"}, "verbosity": "low"}, "previous_response_id": None}
    assert post(serve("ok"), **fields, **more, **text).status == 200


def test_a_repeated_request_is_answered_without_new_tokens(serve: Serve) -> None:
    served = serve(TEXT)
    headers = {"Authorization": f"Bearer {KEY}", "Idempotency-Key": "once"}
    body = {"model": "help", "input": "hi"}
    first, second = (call(served.url, "/v1/responses", body, **headers) for _ in range(2))
    assert first.json["id"] == second.json["id"]
    assert first.json["output"] == second.json["output"]
    assert second.headers["Idempotent-Replayed"] == "true"
    [row] = ledger_of(served)
    assert row["output_tokens"] == first.json["usage"]["output_tokens"]
    chat = {"model": "help", "messages": [{"role": "user", "content": "hi"}]}
    assert call(served.url, "/v1/chat/completions", chat, **headers).status == 400


def test_the_ledger_has_every_usage(serve: Serve) -> None:
    served = serve(TEXT)
    with connect(served) as client:
        used = [client.responses.create(model="help", input=text, max_output_tokens=9).usage for text in ("a", "bc")]
        for event in client.responses.create(model="help", input="def", stream=True):
            if event.type == "response.completed":
                used.append(event.response.usage)
    told = [(usage.input_tokens, usage.output_tokens) for usage in used if usage]
    assert [(row["prompt_tokens"], row["output_tokens"]) for row in ledger_of(served)] == told


def test_an_engine_that_fails_in_mid_stream_ends_with_a_failed_response(serve: Serve, tmp_path: Any) -> None:
    runner = says(tmp_path, "Hello!")
    runner.fail_after = 4
    told = events(serve(runner=runner))
    assert [name for name, _ in told][-2:] == ["error", "response.failed"]
    for _, data in told:
        TypeAdapter[Any](ResponseStreamEvent).validate_python(data)
    assert "engine failed" in told[-1][1]["response"]["error"]["message"]


def test_authentication_and_limits_hold(serve: Serve) -> None:
    served = serve("ok", skills=(HELP,))
    with connect(served, "wrong") as client, pytest.raises(openai.AuthenticationError):
        client.responses.create(model="help", input="hi")
    with connect(served) as client, pytest.raises(openai.NotFoundError):
        client.responses.create(model="nobody", input="hi")
    assert ledger_of(served) == []
