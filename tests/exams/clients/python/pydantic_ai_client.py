"""pydantic-ai: text, structured output by a forced tool, and a streamed run."""

import asyncio

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from report import KEY, MODEL, URL, feature

provider = OpenAIProvider(base_url=URL, api_key=KEY)
chat = OpenAIChatModel(MODEL, provider=provider)


class Ticket(BaseModel):
    title: str
    urgent: bool


@feature("run")
def _() -> object:
    return Agent(chat, model_settings={"max_tokens": 24}).run_sync("What is Secateur?").output


@feature("structured output (a forced tool call)")
def _() -> object:
    result = Agent(chat, output_type=Ticket, model_settings={"max_tokens": 160}).run_sync("File: the printer burns.")
    assert isinstance(result.output, Ticket)
    return result.output


@feature("structured output (json_schema)")
def _() -> object:
    agent = Agent(chat, output_type=NativeOutput(Ticket), model_settings={"max_tokens": 160})
    return agent.run_sync("File: the printer burns.").output


@feature("run_stream")
def _() -> object:
    async def read() -> str:
        async with Agent(chat, model_settings={"max_tokens": 24}).run_stream("What is Secateur?") as run:
            return await run.get_output()

    return asyncio.run(read())


@feature("Responses model")
def _() -> object:
    model = OpenAIResponsesModel(MODEL, provider=provider)
    return Agent(model, model_settings={"max_tokens": 24}).run_sync("What is Secateur?").output
