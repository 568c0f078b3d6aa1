"""Tools through the official client, unmodified: parsing, stream helpers, a history with results, several choices."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from msgspec.structs import replace
from openai import OpenAI, pydantic_function_tool
from pydantic import BaseModel

from server.text.tool_form import HERMES
from tests.support import harness
from tests.support.harness import HELP, KEY, Serve, Served, ledger_of

ASK: Any = [{"role": "user", "content": "What is the weather in Rome?"}]
ROME, OSLO = '{"city": "Rome"}', '{"city": "Oslo"}'


class Weather(BaseModel):
    """The weather of a city."""

    city: str


TOOLS = [pydantic_function_tool(Weather)]
TWO_CALLS = "\n".join(HERMES.written("Weather", arguments) for arguments in (ROME, OSLO))


@pytest.fixture
def ask(serve: Serve) -> Iterator[Any]:
    """`client.chat.completions` of a server that replies with a text."""
    clients = []

    def start(text: str, **settings: Any) -> tuple[Any, Served]:
        served = serve(text, context=2048, **settings)
        client = OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0)
        clients.append(client)
        return client.chat.completions, served

    yield start
    for client in clients:
        client.close()


def test_calls_are_parsed_by_the_clients_own_models(ask: Any) -> None:
    chat, served = ask(TWO_CALLS)
    reply = chat.parse(model="help", messages=ASK, tools=TOOLS, parallel_tool_calls=True, max_tokens=500)
    [choice] = reply.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    parsed = [call.function.parsed_arguments for call in choice.message.tool_calls]
    assert parsed == [Weather(city="Rome"), Weather(city="Oslo")]
    assert len({call.id for call in choice.message.tool_calls}) == 2
    assert reply.usage.completion_tokens == len(TWO_CALLS) + 1 == ledger_of(served)[0]["output_tokens"]


def test_streamed_calls_are_gathered_by_the_clients_own_helper(ask: Any) -> None:
    chat, _ = ask("So: " + TWO_CALLS)
    with chat.stream(model="help", messages=ASK, tools=TOOLS, parallel_tool_calls=True, max_tokens=500) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "So: "
    assert final.choices[0].finish_reason == "tool_calls"
    calls = final.choices[0].message.tool_calls
    assert [call.function.parsed_arguments for call in calls] == [Weather(city="Rome"), Weather(city="Oslo")]
    done = [event.arguments for event in events if event.type == "tool_calls.function.arguments.done"]
    assert done == [ROME, OSLO]
    pieces = [event.arguments_delta for event in events if event.type == "tool_calls.function.arguments.delta"]
    assert "".join(pieces) == ROME + OSLO
    assert len(pieces) > 4


def test_raw_chunks_have_index_id_and_name_first(ask: Any) -> None:
    chat, _ = ask(TWO_CALLS)
    chunks = chat.create(
        model="help", messages=ASK, tools=TOOLS, tool_choice="required", parallel_tool_calls=True, stream=True,
        max_tokens=500,
    )  # fmt: skip
    parts = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or []]
    heads = [part for part in parts if part.id]
    assert [(part.index, part.type, part.function.name, part.function.arguments) for part in heads] == [
        (0, "function", "Weather", ""),
        (1, "function", "Weather", ""),
    ]
    assert all(part.function.name is None and part.type is None for part in parts if not part.id)


def test_a_conversation_goes_on_with_the_results(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    chat, served = ask(HERMES.written("Weather", ROME))
    seen: list[Any] = []
    render = served.tokenizer.chat

    def watched(messages: Any, **options: Any) -> Any:
        seen.append([(message["role"], message["content"]) for message in messages])
        return render(messages, **options)

    called = chat.create(model="help", messages=ASK, tools=TOOLS, tool_choice="required", max_tokens=500)
    [call] = called.choices[0].message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"}
    monkeypatch.setattr(served.tokenizer, "chat", watched)
    chat.create(model="help", messages=[*ASK, called.choices[0].message, result], tools=TOOLS, max_tokens=500)
    [system, question, answer, response] = seen[0]
    assert system[1].startswith("Be brief.\n\n")
    assert json.dumps(TOOLS[0]["function"]["name"]) in system[1]
    assert question == ("user", ASK[0]["content"])
    assert answer == ("assistant", HERMES.written("Weather", ROME))
    assert response == ("user", "<tool_response>\n21 degrees\n</tool_response>")


def test_a_text_stays_a_text(ask: Any) -> None:
    chat, _ = ask("It is <b>fine</b>.")
    for options in ({}, {"tools": TOOLS}, {"tools": TOOLS, "tool_choice": "none"}):
        choice = chat.create(model="help", messages=ASK, **options).choices[0]
        assert (choice.finish_reason, choice.message.content) == ("stop", "It is <b>fine</b>.")
        assert choice.message.tool_calls is None


def test_a_call_that_was_cut_off_ends_with_length(ask: Any) -> None:
    chat, _ = ask(TWO_CALLS)
    cut = len(HERMES.before + "Weather" + HERMES.middle) + 5
    choice = chat.create(model="help", messages=ASK, tools=TOOLS, tool_choice="required", max_tokens=cut).choices[0]
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls[0].function.arguments == ROME[:5]


def test_every_choice_has_calls_of_its_own_and_a_repeated_request_the_same(ask: Any) -> None:
    chat, _ = ask(HERMES.written("Weather", ROME))
    options: Any = {
        "model": "help",
        "messages": ASK,
        "tools": TOOLS,
        "tool_choice": "required",
        "n": 2,
        "max_tokens": 99,
    }
    first, second = (chat.create(**options, extra_headers={"Idempotency-Key": "k"}) for _ in range(2))
    ids = [call.id for choice in first.choices for call in choice.message.tool_calls]
    assert len(set(ids)) == 2
    assert first == second


def test_the_older_names_are_answered_in_their_own_form(ask: Any) -> None:
    chat, _ = ask(HERMES.written("Weather", ROME))
    functions = [TOOLS[0]["function"]]
    choice = chat.create(model="help", messages=ASK, functions=functions, max_tokens=99).choices[0]
    assert choice.finish_reason == "function_call"
    assert (choice.message.function_call.name, choice.message.function_call.arguments) == ("Weather", ROME)
    chunks = list(chat.create(model="help", messages=ASK, functions=functions, max_tokens=99, stream=True))
    parts = [chunk.choices[0].delta.function_call for chunk in chunks if chunk.choices[0].delta.function_call]
    assert "".join(part.arguments or "" for part in parts) == ROME


def test_a_skill_may_refuse_tools(serve: Serve, tmp_path: Path) -> None:
    served = serve(skills=(replace(HELP, tools=False),))
    with OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as client:
        options: Any = {"model": "help", "messages": ASK, "tools": TOOLS}
        with pytest.raises(openai.BadRequestError, match="does not allow tools"):
            client.chat.completions.create(**options)
        client.chat.completions.create(**options, tool_choice="none")


NATIVE = (  # in the manner of Qwen's
    "{% if tools %}<|im_start|>tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for call in m.tool_calls or [] %}"
    '<call>{"name": "{{ call.function.name }}", "input": {{ call.function.arguments | tojson }}}</call>{% endfor %}'
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_template_with_tools_of_its_own_is_followed(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "TEMPLATE", NATIVE)
    calls = [f'<call>{{"name": "Weather", "input": {arguments}}}</call>' for arguments in (ROME, OSLO)]
    chat, served = ask("".join(calls))
    seen: list[str] = []
    submit = served.engine.submit_together

    def watched(sequences: Any) -> Any:
        seen.extend(served.tokenizer.detokenise(sequence.prompt) for sequence in sequences)
        return submit(sequences)

    monkeypatch.setattr(served.engine, "submit_together", watched)
    reply = chat.create(model="help", messages=ASK, tools=TOOLS, max_tokens=500).choices[0]
    assert [call.function.arguments for call in reply.message.tool_calls] == [ROME, OSLO]
    results = [{"role": "tool", "tool_call_id": call.id, "content": "21"} for call in reply.message.tool_calls]
    chat.create(model="help", messages=[*ASK, reply.message, *results], tools=TOOLS, max_tokens=5)
    assert seen[0].startswith('<|im_start|>tools\n{"type": "function", "function": {"name": "Weather", ')
    assert seen[1].endswith(
        f"assistant\n{''.join(calls)}<|im_end|>\n" + "<|im_start|>tool\n21<|im_end|>\n" * 2 + "<|im_start|>assistant\n"
    )
