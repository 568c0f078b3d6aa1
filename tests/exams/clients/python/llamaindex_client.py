"""LlamaIndex's client for servers like OpenAI's, with its defaults."""

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from report import KEY, MODEL, URL, feature

plain = OpenAILike(model=MODEL, api_base=URL, api_key=KEY, max_tokens=24, max_retries=0)
chat = OpenAILike(model=MODEL, api_base=URL, api_key=KEY, max_tokens=24, max_retries=0, is_chat_model=True)


@feature("complete, default")
def _() -> object:
    return plain.complete("The sky is").text


@feature("chat, default (by completions)")
def _() -> object:
    return plain.chat([ChatMessage(role="user", content="What is Secateur?")]).message.content


@feature("stream_complete, default")
def _() -> object:
    return [chunk.delta for chunk in plain.stream_complete("The sky is")]


@feature("chat, as a chat model")
def _() -> object:
    return chat.chat([ChatMessage(role="user", content="What is Secateur?")]).message.content
