"""Tools and structured output through the Responses API and Anthropic's, by the official clients, unmodified."""

import json
from typing import Any

import pytest
from anthropic import Anthropic
from anthropic.types import Message, RawMessageStreamEvent
from openai import OpenAI, pydantic_function_tool
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from server.text.tool_form import HERMES
from tests.server.web.contracts.test_openai_responses import OURS, unknown
from tests.server.web.test_listeners import call
from tests.support.harness import KEY, Serve, Served, ledger_of

ROME, OSLO = '{"city": "Rome"}', '{"city": "Oslo"}'
TWO_CALLS = "So: " + "\n".join(HERMES.written("Weather", arguments) for arguments in (ROME, OSLO))
ASK: Any = [{"role": "user", "content": "What is the weather in Rome?"}]


class Weather(BaseModel):
    """The weather of a city."""

    city: str


SCHEMA = pydantic_function_tool(Weather)["function"]["parameters"]
FUNCTION: Any = {"type": "function", "name": "Weather", "description": "x", "parameters": SCHEMA, "strict": True}
TOOL: Any = {"name": "Weather", "description": "x", "input_schema": SCHEMA}


def openai_client(served: Served) -> OpenAI:
    return OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0)


def anthropic_client(served: Served) -> Anthropic:
    return Anthropic(base_url=served.url, api_key=KEY, max_retries=0)


def data_of(content: bytes) -> list[Any]:
    """The decoded data of every event of a stream."""
    lines = content.decode().splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def test_a_response_calls_functions(serve: Serve) -> None:
    served = serve(TWO_CALLS, context=2048)
    options: Any = {"model": "help", "input": "hi", "tools": [FUNCTION], "max_output_tokens": 500}
    options["parallel_tool_calls"] = True
    with openai_client(served) as client:
        reply = client.responses.create(**options)
        assert [item.type for item in reply.output] == ["message", "function_call", "function_call"]
        assert (reply.status, reply.output_text) == ("completed", "So: ")
        calls = [item for item in reply.output if item.type == "function_call"]
        assert [(call.name, call.arguments) for call in calls] == [("Weather", ROME), ("Weather", OSLO)]
        assert len({call.call_id for call in calls}) == 2
        with client.responses.stream(**options) as stream:
            events = list(stream)
        done = [event.arguments for event in events if event.type == "response.function_call_arguments.done"]
        deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
        assert (done, "".join(deltas)) == ([ROME, OSLO], ROME + OSLO)
        assert [item.type for item in stream.get_final_response().output] == [item.type for item in reply.output]
    assert {row["output_tokens"] for row in ledger_of(served)} == {len(TWO_CALLS) + 1}


def test_every_object_of_a_call_is_valid_by_openais_types(serve: Serve) -> None:
    served = serve(TWO_CALLS, context=2048)
    body = {"model": "help", "input": "hi", "tools": [FUNCTION], "max_output_tokens": 500, "parallel_tool_calls": True}
    whole = call(served.url, "/v1/responses", body, Authorization=f"Bearer {KEY}").json
    assert unknown(Response.model_validate(whole)) <= OURS
    for data in data_of(
        call(served.url, "/v1/responses", {**body, "stream": True}, x_api_key="", Authorization=f"Bearer {KEY}").content
    ):
        assert unknown(TypeAdapter[Any](ResponseStreamEvent).validate_python(data)) <= OURS


def test_a_response_goes_on_with_the_results(serve: Serve) -> None:
    served = serve(HERMES.written("Weather", ROME), context=2048)
    with openai_client(served) as client:
        choice: Any = {"type": "function", "name": "Weather"}
        first = client.responses.create(
            model="help", input=ASK, tools=[FUNCTION], tool_choice=choice, max_output_tokens=500
        )
        [called] = first.output
        assert called.type == "function_call"
        result = {"type": "function_call_output", "call_id": called.call_id, "output": "21 degrees"}
        items: Any = [*ASK, *first.output, result]
        seen = watch(served)
        client.responses.create(model="help", input=items, tools=[FUNCTION], max_output_tokens=500)
    assert seen[0][1:] == history(ASK[0]["content"])


def test_a_message_uses_tools(serve: Serve) -> None:
    served = serve(TWO_CALLS, context=2048)
    options: Any = {"model": "help", "max_tokens": 500, "messages": ASK, "tools": [TOOL]}
    with anthropic_client(served) as client:
        message = client.messages.create(**options)
        with client.messages.stream(**options) as stream:
            final = stream.get_final_message()
    both: list[Any] = [message, final]
    for told in both:
        assert told.stop_reason == "tool_use"
        assert [block.text for block in told.content if block.type == "text"] == ["So: "]
        uses = [block for block in told.content if block.type == "tool_use"]
        assert uses[0].name == "Weather"
        assert uses[0].input == {"city": "Rome"}
    assert {row["output_tokens"] for row in ledger_of(served)} == {message.usage.output_tokens}


def test_every_object_of_a_use_is_valid_by_anthropics_types(serve: Serve) -> None:
    served = serve(TWO_CALLS, context=2048)
    body = {"model": "help", "max_tokens": 500, "messages": ASK, "tools": [TOOL]}
    assert unknown(Message.model_validate(call(served.url, "/v1/messages", body, x_api_key=KEY).json)) == set()
    for data in data_of(call(served.url, "/v1/messages", {**body, "stream": True}, x_api_key=KEY).content):
        if data["type"] != "ping":
            assert unknown(TypeAdapter[Any](RawMessageStreamEvent).validate_python(data)) == set()


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "Weather"}])
def test_a_message_goes_on_with_the_results(serve: Serve, choice: Any) -> None:
    served = serve(HERMES.written("Weather", ROME), context=2048)
    with anthropic_client(served) as client:
        first = client.messages.create(model="help", max_tokens=500, messages=ASK, tools=[TOOL], tool_choice=choice)
        [use] = first.content
        assert use.type == "tool_use"
        result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "21 degrees"}]}
        turns: Any = [*ASK, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
        counted = client.messages.count_tokens(model="help", messages=turns, tools=[TOOL]).input_tokens
        seen = watch(served)
        used = client.messages.create(model="help", max_tokens=500, messages=turns, tools=[TOOL]).usage
    assert seen[0][1:] == history(ASK[0]["content"])
    assert counted == used.input_tokens + (used.cache_read_input_tokens or 0)


def watch(served: Served) -> list[Any]:
    """Gathers the role and content of each conversation that is rendered from now on."""
    seen: list[Any] = []
    render = served.tokenizer.chat

    def watched(messages: Any, **options: Any) -> list[int]:
        seen.append([(message["role"], message["content"]) for message in messages])
        return render(messages, **options)

    served.tokenizer.chat = watched  # type: ignore[method-assign]
    return seen


def history(question: str) -> list[tuple[str, str]]:
    """The turns after the system prompt, as a model without a branch for tools reads them."""
    answer = ("assistant", HERMES.written("Weather", ROME))
    return [("user", question), answer, ("user", "<tool_response>\n21 degrees\n</tool_response>")]


def test_a_parsed_response_matches_its_model(serve: Serve) -> None:
    with openai_client(serve(ROME, context=2048)) as client:
        reply = client.responses.parse(model="help", input="hi", text_format=Weather, max_output_tokens=100)
    assert reply.output_parsed == Weather(city="Rome")


def test_a_parsed_message_matches_its_model(serve: Serve) -> None:
    with anthropic_client(serve(ROME, context=2048)) as client:
        reply = client.messages.parse(model="help", max_tokens=100, messages=ASK, output_format=Weather)
    assert reply.parsed_output == Weather(city="Rome")


WRONG_FORMAT = {"type": "json_schema", "name": "a", "schema": {"type": 3}}


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/responses", {"input": "x", "tools": [{"type": "function", "name": "no spaces"}]}, "tools[0].name"),
        ("/v1/responses", {"input": "x", "tool_choice": "required"}, "tool_choice"),
        (
            "/v1/responses",
            {"input": "x", "text": {"format": WRONG_FORMAT}},
            "text.format",
        ),
    ],
)
def test_a_mistake_is_named_as_the_caller_wrote_it(serve: Serve, path: str, fields: Any, param: str) -> None:
    answer = call(serve().url, path, {"model": "help", **fields}, Authorization=f"Bearer {KEY}")
    assert (answer.status, answer.json["error"]["param"][: len(param)]) == (400, param)
