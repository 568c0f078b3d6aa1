"""The official Python client."""

import numpy
from openai import BadRequestError, NotFoundError, OpenAI, pydantic_function_tool
from pydantic import BaseModel
from report import ENCODER, KEY, MODEL, URL, feature

client = OpenAI(base_url=URL, api_key=KEY, max_retries=0, timeout=300)
HELLO = [{"role": "user", "content": "What is Secateur?"}]


class Ticket(BaseModel):
    title: str
    urgent: bool


class Weather(BaseModel):
    """The weather in a city."""

    city: str


TOOL = pydantic_function_tool(Weather, name="weather")


@feature("chat")
def _() -> object:
    reply = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=24)
    assert reply.choices[0].message.content
    assert reply.usage.completion_tokens <= 24
    return reply.choices[0].message.content


@feature("chat, streamed")
def _() -> object:
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=24, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[-1].usage.total_tokens
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


@feature("chat, stream helper")
def _() -> object:
    with client.chat.completions.stream(model=MODEL, messages=HELLO, stop=["."]) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content
    return final.choices[0].finish_reason


@feature("any order of roles")
def _() -> object:
    messages = [
        {"role": "assistant", "content": "Hello, how can I help?"},
        {"role": "user", "content": "hi"},
        {"role": "user", "content": "are you there?"},
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": "Be kind."},
    ]
    return client.chat.completions.create(model=MODEL, messages=messages, max_tokens=8).choices[0].message.content


@feature("n = 3")
def _() -> object:
    reply = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=8, n=3, temperature=1, seed=3)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    return [choice.message.content for choice in reply.choices]


@feature("logprobs")
def _() -> object:
    reply = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=4, logprobs=True, top_logprobs=2)
    assert len(reply.choices[0].logprobs.content) == reply.usage.completion_tokens
    return reply.choices[0].logprobs.content[0].logprob


@feature("structured output, parse")
def _() -> object:
    messages = [{"role": "user", "content": "File a ticket: the printer burns. Answer in JSON."}]
    reply = client.chat.completions.parse(model=MODEL, messages=messages, response_format=Ticket, max_tokens=120)
    assert isinstance(reply.choices[0].message.parsed, Ticket)
    return reply.choices[0].message.parsed


@feature("json_object")
def _() -> object:
    import json

    reply = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Answer in JSON: who are you?"}],
        response_format={"type": "json_object"},
        max_tokens=300,
    )
    return json.loads(reply.choices[0].message.content)


@feature("tools, forced and named")
def _() -> object:
    choice = {"type": "function", "function": {"name": "weather"}}
    messages = [{"role": "user", "content": "How is the weather in Paris?"}]
    reply = client.chat.completions.parse(model=MODEL, messages=messages, tools=[TOOL], tool_choice=choice)
    (call,) = reply.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Weather)
    return call.function.parsed_arguments


@feature("tools, streamed, then their result")
def _() -> object:
    messages = [{"role": "user", "content": "How is the weather in Paris?"}]
    with client.chat.completions.stream(model=MODEL, messages=messages, tools=[TOOL], tool_choice="required") as stream:
        for _ in stream:
            pass
        message = stream.get_final_completion().choices[0].message
    messages.append(message.model_dump(exclude_none=True))
    messages += [{"role": "tool", "tool_call_id": call.id, "content": "18 degrees"} for call in message.tool_calls]
    reply = client.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL], max_tokens=24)
    return message.tool_calls[0].function.arguments, reply.choices[0].message.content


@feature("tools, auto")
def _() -> object:
    reply = client.chat.completions.create(model=MODEL, messages=HELLO, tools=[TOOL], max_tokens=40)
    message = reply.choices[0].message
    assert message.content or message.tool_calls
    return reply.choices[0].finish_reason


@feature("max_tokens above the ceiling")
def _() -> object:
    reply = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=100_000, stop=["."])
    return reply.choices[0].finish_reason


@feature("overflow is named")
def _() -> object:
    try:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 20_000}])
    except BadRequestError as error:
        assert error.code == "context_length_exceeded"
        assert "maximum context length is" in error.message
        return error.message
    raise AssertionError("an overflow was answered")


@feature("completions")
def _() -> object:
    reply = client.completions.create(model=MODEL, prompt=["The sky is", "Water is"], max_tokens=6, logprobs=2)
    assert [choice.index for choice in reply.choices] == [0, 1]
    return [choice.text for choice in reply.choices]


@feature("completions, streamed")
def _() -> object:
    stream = client.completions.create(model=MODEL, prompt="The sky is", max_tokens=6, stream=True)
    return "".join(chunk.choices[0].text for chunk in stream)


@feature("responses")
def _() -> object:
    reply = client.responses.create(model=MODEL, input="What is Secateur?", max_output_tokens=24)
    assert reply.output_text
    return reply.output_text


@feature("responses, streamed")
def _() -> object:
    with client.responses.stream(model=MODEL, input="What is Secateur?", max_output_tokens=24) as stream:
        events = list(stream)
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert events[-1].response.output_text == text  # the helper has no final response for one that is cut short
    return events[0].type, events[-1].type


@feature("responses, parse")
def _() -> object:
    reply = client.responses.parse(model=MODEL, input="File a ticket in JSON.", text_format=Ticket)
    assert isinstance(reply.output_parsed, Ticket)
    return reply.output_parsed


@feature("responses, tools")
def _() -> object:
    tool = {"type": "function", "name": "weather", "parameters": Weather.model_json_schema(), "strict": False}
    reply = client.responses.create(model=MODEL, input="Weather in Paris?", tools=[tool], tool_choice="required")
    (call,) = (item for item in reply.output if item.type == "function_call")
    return call.arguments


@feature("embeddings")
def _() -> object:
    texts = ["a cat", "a kitten", "tax law"]
    vectors = numpy.array([item.embedding for item in client.embeddings.create(model=ENCODER, input=texts).data])
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > likeness[0, 2]
    return round(float(likeness[0, 1]), 3)


@feature("models")
def _() -> object:
    names = [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL
    return names


@feature("an unknown model is named")
def _() -> object:
    try:
        client.chat.completions.create(model="gpt-99", messages=HELLO)
    except NotFoundError as error:
        return error.message
    raise AssertionError("an unknown model answered")
