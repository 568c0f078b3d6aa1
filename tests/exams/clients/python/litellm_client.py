"""litellm, which routes to any server of OpenAI's form."""

import litellm
from pydantic import BaseModel
from report import ENCODER, KEY, MODEL, URL, feature

OPTIONS = {"api_base": URL, "api_key": KEY, "num_retries": 0}
HELLO = [{"role": "user", "content": "What is Secateur?"}]


class Ticket(BaseModel):
    title: str
    urgent: bool


@feature("completion")
def _() -> object:
    return litellm.completion(model=f"openai/{MODEL}", messages=HELLO, max_tokens=16, **OPTIONS).choices[0].message


@feature("completion, streamed")
def _() -> object:
    stream = litellm.completion(model=f"openai/{MODEL}", messages=HELLO, max_tokens=16, stream=True, **OPTIONS)
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


@feature("structured output")
def _() -> object:
    reply = litellm.completion(
        model=f"openai/{MODEL}", messages=HELLO, response_format=Ticket, max_tokens=120, **OPTIONS
    )
    return Ticket.model_validate_json(reply.choices[0].message.content)


@feature("overflow becomes ContextWindowExceededError")
def _() -> object:
    try:
        litellm.completion(model=f"openai/{MODEL}", messages=[{"role": "user", "content": "word " * 20_000}], **OPTIONS)
    except litellm.ContextWindowExceededError as error:
        return str(error)
    raise AssertionError("an overflow was answered")


@feature("text completion")
def _() -> object:
    return (
        litellm.text_completion(model=f"text-completion-openai/{MODEL}", prompt="The sky is", max_tokens=6, **OPTIONS)
        .choices[0]
        .text
    )


@feature("embedding")
def _() -> object:
    return len(litellm.embedding(model=f"openai/{ENCODER}", input=["a cat"], **OPTIONS).data[0]["embedding"])


@feature("anthropic messages")
def _() -> object:
    base = URL.removesuffix("/v1")
    return (
        litellm.completion(model=f"anthropic/{MODEL}", messages=HELLO, max_tokens=16, api_base=base, api_key=KEY)
        .choices[0]
        .message.content
    )
