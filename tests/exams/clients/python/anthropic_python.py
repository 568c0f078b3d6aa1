"""Anthropic's Python client, on /v1/messages."""

from anthropic import Anthropic
from report import KEY, MODEL, URL, feature

client = Anthropic(base_url=URL.removesuffix("/v1"), api_key=KEY, max_retries=0)
HELLO = [{"role": "user", "content": "What is Secateur?"}]
TOOL = {
    "name": "weather",
    "description": "The weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@feature("messages")
def _() -> object:
    return client.messages.create(model=MODEL, messages=HELLO, max_tokens=24).content[0].text


@feature("messages, streamed")
def _() -> object:
    with client.messages.stream(model=MODEL, messages=HELLO, max_tokens=24, system="Be brief.") as stream:
        text = "".join(stream.text_stream)
        assert text == stream.get_final_message().content[0].text
    return text


@feature("tools, then their result")
def _() -> object:
    asked = [{"role": "user", "content": "How is the weather in Paris?"}]
    options = {"model": MODEL, "max_tokens": 200, "tools": [TOOL]}
    reply = client.messages.create(messages=asked, tool_choice={"type": "any"}, **options)
    (call,) = (block for block in reply.content if block.type == "tool_use")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "18 degrees"}
    history = [*asked, {"role": "assistant", "content": reply.content}, {"role": "user", "content": [result]}]
    return call.input, client.messages.create(messages=history, **options).content


@feature("count_tokens")
def _() -> object:
    return client.messages.count_tokens(model=MODEL, messages=HELLO).input_tokens
