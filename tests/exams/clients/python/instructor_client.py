"""instructor: structured output by tools and by JSON schema."""

import instructor
from openai import OpenAI
from pydantic import BaseModel
from report import KEY, MODEL, URL, feature

client = OpenAI(base_url=URL, api_key=KEY, max_retries=0)


class Ticket(BaseModel):
    title: str
    urgent: bool


def extract(mode: instructor.Mode) -> object:
    ticket = instructor.from_openai(client, mode=mode).chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "The printer burns, it is urgent."}],
        response_model=Ticket,
        max_tokens=160,
        max_retries=0,
    )
    assert isinstance(ticket, Ticket)
    return ticket


@feature("by tools")
def _() -> object:
    return extract(instructor.Mode.TOOLS)


@feature("by JSON schema")
def _() -> object:
    return extract(instructor.Mode.JSON_SCHEMA)


@feature("by JSON mode")
def _() -> object:
    return extract(instructor.Mode.JSON)
