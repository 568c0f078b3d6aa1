"""LangChain: chat, structured output by its three methods, tools, and an agent of two turns."""

from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel
from report import ENCODER, KEY, MODEL, URL, feature

OPTIONS = {"base_url": URL, "api_key": KEY, "max_retries": 0}
chat = ChatOpenAI(model=MODEL, max_tokens=160, **OPTIONS)


class Ticket(BaseModel):
    """A ticket."""

    title: str
    urgent: bool


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"18 degrees in {city}"


@feature("invoke")
def _() -> object:
    return chat.invoke("What is Secateur?").content


@feature("stream")
def _() -> object:
    return "".join(chunk.content for chunk in chat.stream("What is Secateur?"))


def structured(method: str) -> object:
    reply = chat.with_structured_output(Ticket, method=method).invoke("File a ticket in JSON: the printer burns.")
    assert isinstance(reply, Ticket), reply
    return reply


@feature("structured output, json_schema")
def _() -> object:
    return structured("json_schema")


@feature("structured output, function_calling")
def _() -> object:
    return structured("function_calling")


@feature("structured output, json_mode")
def _() -> object:
    text = chat.bind(response_format={"type": "json_object"}).invoke("Answer in JSON: who are you?").content
    model = chat.with_structured_output(None, method="json_mode")
    return text, model.invoke("Answer in JSON: who are you?")


@feature("bind_tools, then their result")
def _() -> object:
    asked = [HumanMessage("How is the weather in Paris?")]
    call = chat.bind_tools([weather], tool_choice="any").invoke(asked)
    assert call.tool_calls[0]["name"] == "weather"
    results = [weather.invoke(one) for one in call.tool_calls]
    return call.tool_calls, chat.bind_tools([weather]).invoke([*asked, call, *results]).content


@feature("agent of two turns")
def _() -> object:
    agent = create_agent(chat, tools=[weather])
    first = agent.invoke({"messages": [HumanMessage("How is the weather in Paris?")]}, {"recursion_limit": 12})
    second = agent.invoke({"messages": [*first["messages"], HumanMessage("Thank you.")]}, {"recursion_limit": 12})
    assert second["messages"][-1].type == "ai"
    return [message.type for message in second["messages"]]


@feature("Responses API")
def _() -> object:
    return ChatOpenAI(model=MODEL, use_responses_api=True, max_tokens=40, **OPTIONS).invoke("What is Secateur?").text


@feature("completions")
def _() -> object:
    return OpenAI(model=MODEL, max_tokens=8, **OPTIONS).invoke("The sky is")


@feature("embeddings of token ids or text")
def _() -> object:
    plain = OpenAIEmbeddings(model=ENCODER, check_embedding_ctx_length=False, **OPTIONS)
    return len(plain.embed_query("a cat"))
