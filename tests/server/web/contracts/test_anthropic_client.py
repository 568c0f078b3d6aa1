"""The official Anthropic client against the real server, and every object validated by the client's own types."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic
from anthropic.types import Message, RawMessageStreamEvent
from msgspec.structs import replace
from pydantic import TypeAdapter

from tests.server.web.contracts.test_openai_responses import unknown
from tests.server.web.test_listeners import call
from tests.support.harness import END, HELP, KEY, OTHER_KEY, START, Serve, Served, ledger_of, says

TEXT = "Hello, world! Ünïcödé 🌱"
ASK: Any = [{"role": "user", "content": "hi"}]
PROMPT = f"{START}system\nBe brief.{END}\n{START}user\nhi{END}\n{START}assistant\n"


def connect(served: Served, key: str = KEY, **options: Any) -> Anthropic:
    return Anthropic(base_url=served.url, api_key=key, **{"max_retries": 0, **options})


@pytest.fixture
def client(serve: Serve) -> Iterator[Anthropic]:
    with connect(serve(TEXT)) as client:
        yield client


def post(served: Served, path: str = "/v1/messages", **fields: Any) -> Any:
    body = {"model": "help", "messages": ASK, "max_tokens": 64, **fields}
    return call(served.url, path, body, x_api_key=KEY, anthropic_version="2023-06-01")


def tokens(text: str) -> int:
    """The tokens of a prompt: one a byte, and one for each special token."""
    return len(text.replace(START, "[").replace(END, "]").encode())


def test_whole(client: Anthropic) -> None:
    message = client.messages.create(model="help", max_tokens=64, messages=ASK)
    [block] = message.content
    assert block.type == "text"
    assert block.text == TEXT
    assert (message.stop_reason, message.stop_sequence, message.role) == ("end_turn", None, "assistant")
    assert message.id.startswith("msg_")
    assert (message.usage.input_tokens, message.usage.output_tokens) == (tokens(PROMPT), len(TEXT.encode()) + 1)
    again = client.messages.create(model="help", max_tokens=64, messages=ASK).usage
    assert again.cache_read_input_tokens
    assert again.input_tokens + again.cache_read_input_tokens == tokens(PROMPT)


def test_streamed(client: Anthropic) -> None:
    with client.messages.stream(model="help", max_tokens=64, messages=ASK) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == TEXT
    assert [block.text for block in final.content if block.type == "text"] == [TEXT]
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", len(TEXT.encode()) + 1)


def test_every_object_is_valid_by_the_clients_types(serve: Serve) -> None:
    served = serve(TEXT)
    whole = Message.model_validate(post(served).json)
    assert unknown(whole) == set()
    kinds = []
    for block in post(served, stream=True).content.decode().strip().split("\n\n"):
        name, data = (line.partition(": ")[2] for line in block.splitlines())
        event = json.loads(data)
        assert name == event["type"]
        kinds.append(name)
        if name != "ping":  # the client drops pings before it parses
            assert unknown(TypeAdapter[Any](RawMessageStreamEvent).validate_python(event)) == set()
    assert kinds[:3] == ["message_start", "content_block_start", "ping"]
    assert set(kinds[3:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_max_tokens(client: Anthropic) -> None:
    message = client.messages.create(model="help", max_tokens=5, messages=ASK)
    assert message.content[0].type == "text"
    assert (message.content[0].text, message.stop_reason) == ("Hello", "max_tokens")


def test_a_stop_sequence_is_named(client: Anthropic) -> None:
    options: Any = {"model": "help", "max_tokens": 64, "messages": ASK, "stop_sequences": ["nothing", "wor", "o, w"]}
    message = client.messages.create(**options)
    assert message.content[0].type == "text"
    assert message.content[0].text == "Hell"
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "o, w")
    with client.messages.stream(**options) as stream:
        final = stream.get_final_message()
    assert [block.text for block in final.content if block.type == "text"] == ["Hell"]
    assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", "o, w")


def test_systems_blocks_and_turns_become_the_conversation(serve: Serve) -> None:
    served = serve("ok")
    with connect(served) as client:
        first = client.messages.create(model="help", max_tokens=9, messages=ASK)
        turns: Any = [
            {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]},
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ]
        systems: Any = ["Be kind.", [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}]]
        for system in systems:
            used = client.messages.create(model="help", max_tokens=9, system=system, messages=turns).usage
            text = (
                f"{START}system\nBe brief.\n\nBe kind.{END}\n{START}user\nhi{END}\n{START}assistant\nok{END}\n"
                f"{START}user\na\nb{END}\n{START}assistant\n"
            )
            assert used.input_tokens + (used.cache_read_input_tokens or 0) == tokens(text)


def test_a_last_assistants_turn_is_continued(client: Anthropic) -> None:
    turns: Any = [*ASK, {"role": "assistant", "content": "Well,"}]
    used = client.messages.create(model="help", max_tokens=9, messages=turns).usage
    assert used.input_tokens + (used.cache_read_input_tokens or 0) == tokens(f"{PROMPT}Well,")


def test_counting_gives_what_is_billed(serve: Serve) -> None:
    served = serve("ok")
    with connect(served) as client:
        counted = client.messages.count_tokens(model="help", system="More.", messages=ASK).input_tokens
        assert ledger_of(served) == []
        used = client.messages.create(model="help", max_tokens=9, system="More.", messages=ASK).usage
    assert counted == used.input_tokens + (used.cache_read_input_tokens or 0)
    assert post(served, "/v1/messages/count_tokens", messages=[]).status == 400


def test_credentials_in_either_header(serve: Serve) -> None:
    served = serve("ok", skills=(replace(HELP, aliases=("Claude/local",)),))
    with Anthropic(base_url=served.url, auth_token=KEY, max_retries=0) as client:
        message = client.messages.create(model="Claude/local", max_tokens=9, messages=ASK)
        assert message.model == "Claude/local"
    assert [row["skill"] for row in ledger_of(served)] == ["help"]


def test_errors_are_the_clients_own_exceptions(serve: Serve) -> None:
    served = serve()
    cases: list[tuple[str, dict[str, Any], type[anthropic.APIStatusError], str]] = [
        (KEY, {"model": "nobody"}, anthropic.NotFoundError, "not_found_error"),
        ("wrong", {}, anthropic.AuthenticationError, "authentication_error"),
        (OTHER_KEY, {}, anthropic.PermissionDeniedError, "permission_error"),
        (KEY, {"extra_body": {"temperature": 3}}, anthropic.BadRequestError, "invalid_request_error"),
    ]
    for key, fields, kind, name in cases:
        with connect(served, key) as client, pytest.raises(kind) as caught:
            client.messages.create(**{"model": "help", "max_tokens": 9, "messages": ASK, **fields})
        body: Any = caught.value.response.json()
        assert set(body) == {"type", "error"}
        assert (body["type"], body["error"]["type"]) == ("error", name)
        assert set(body["error"]) == {"type", "message"}


IMAGE = {"type": "image", "source": {"type": "url", "url": "https://x.example/y.png"}}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, ">= 1"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use", "name": "f"}]}]}, "tool_use"),
        ({"system": [IMAGE]}, "system[0].type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "some"}, "tools": [{"name": "f", "input_schema": {}}]}, "tool_choice.type"),
        ({"stop_sequences": ["a", "b", "c", "d", "e"]}, "stop_sequences"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"mcp_servers": [{"name": "x"}]}, "mcp_servers"),
        ({"service_tier": "fast"}, "service_tier"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(serve: Serve, fields: dict[str, Any], text: str) -> None:
    served = serve()
    answer = post(served, **fields)
    assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error")
    assert text in answer.json["error"]["message"]
    assert ledger_of(served) == []


def test_what_asks_for_nothing_is_accepted(serve: Serve) -> None:
    fields: dict[str, Any] = {
        "thinking": {"type": "adaptive"},
        "service_tier": "auto",
        "metadata": {"user_id": "u"},
        "top_k": 5,
    }
    more: dict[str, Any] = {
        "tool_choice": {"type": "auto"},
        "tools": [],
        "output_config": {"effort": "low"},
        "stop_sequences": [],
    }
    assert post(serve("ok"), **fields, **more).status == 200


def test_an_engine_that_fails_in_mid_stream_is_an_api_error(serve: Serve, tmp_path: Any) -> None:
    runner = says(tmp_path, "Hello!")
    runner.fail_after = 4
    with connect(serve(runner=runner)) as client, pytest.raises(anthropic.APIError, match="engine failed"):
        list(client.messages.create(model="help", max_tokens=64, messages=ASK, stream=True))


def test_overload_is_an_error_with_a_retry(serve: Serve) -> None:
    served = serve("slow reply", passes=2, slots=1, max_waiting=0)
    with connect(served) as busy, connect(served) as other:
        running = busy.messages.create(model="help", max_tokens=64, messages=ASK, stream=True)
        with pytest.raises(anthropic.APIStatusError) as caught:
            other.messages.create(model="help", max_tokens=64, messages=ASK)
        assert (caught.value.status_code, caught.value.response.json()["error"]["type"]) == (503, "overloaded_error")
        assert int(caught.value.response.headers["retry-after"]) >= 1
        served.runner.release()
        assert list(running)[-1].type == "message_stop"


def test_the_ledger_has_every_usage(serve: Serve) -> None:
    served = serve(TEXT)
    with connect(served) as client:
        used = [client.messages.create(model="help", max_tokens=9, messages=ASK).usage for _ in range(2)]
        with client.messages.stream(model="help", max_tokens=64, messages=ASK) as stream:
            used.append(stream.get_final_message().usage)
    told = [(usage.input_tokens + (usage.cache_read_input_tokens or 0), usage.output_tokens) for usage in used]
    assert [(row["prompt_tokens"], row["output_tokens"]) for row in ledger_of(served)] == told
