"""The official client, unmodified, against the real server: if it works here, it works for its users."""

import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from msgspec.structs import replace
from openai import OpenAI

from server.artifact.checkpoint.lineage import address
from server.engine.blocks import BLOCK
from tests.support.harness import HELP, KEY, LINEAGE, OTHER, OTHER_KEY, Serve, Served, says

ASK: Any = [{"role": "user", "content": "Say hello"}]
# ChatML, one token a byte: the skill's system prompt, the question, and the beginning of the reply.
PROMPT_TOKENS = len("[system\nBe brief.]\n[user\nSay hello]\n[assistant\n")


def connect(served: Served, key: str = KEY, **options: Any) -> OpenAI:
    return OpenAI(base_url=f"{served.url}/v1", api_key=key, **{"max_retries": 0, **options})


@pytest.fixture
def client(serve: Serve) -> Iterator[OpenAI]:
    with connect(serve("Hello, world! Ünïcödé 🌱")) as client:
        yield client


def test_whole(client: OpenAI) -> None:
    reply = client.chat.completions.create(model="help", messages=ASK)
    assert reply.choices[0].message.content == "Hello, world! Ünïcödé 🌱"
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.object == "chat.completion"
    assert reply.model == "help"
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{32}", reply.id)
    assert re.fullmatch(r"req_[0-9a-f]{32}", reply._request_id or "")
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == PROMPT_TOKENS
    assert reply.usage.completion_tokens == len("Hello, world! Ünïcödé 🌱".encode()) + 1
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_required_keys_are_present_even_when_null(client: OpenAI) -> None:
    raw: Any = client.chat.completions.with_raw_response.create(model="help", messages=ASK).http_response.json()
    assert raw["choices"][0]["logprobs"] is None
    assert raw["choices"][0]["message"]["refusal"] is None
    assert set(raw) == {"id", "object", "created", "model", "choices", "usage"}


def test_streamed(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(model="help", messages=ASK, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "Hello, world! Ünïcödé 🌱"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == PROMPT_TOKENS
    assert chunks[-1].usage.completion_tokens == len(text.encode()) + 1


def test_a_stream_without_usage_has_no_usage(client: OpenAI) -> None:
    for chunk in client.chat.completions.create(model="help", messages=ASK, stream=True):
        assert "usage" not in chunk.model_fields_set
        assert chunk.choices


def test_cached_tokens_are_a_part_of_the_prompt(client: OpenAI) -> None:
    client.chat.completions.create(model="help", messages=ASK)
    usage = client.chat.completions.create(model="help", messages=ASK).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens == PROMPT_TOKENS
    assert usage.prompt_tokens_details.cached_tokens == PROMPT_TOKENS // BLOCK * BLOCK > 0  # whole blocks


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stop", ["wor", ["nothing", ", w"], ["!"], "🌱"])
def test_stop(client: OpenAI, stop: str | list[str], stream: bool) -> None:
    text, finish = ask(client, stream=stream, stop=stop)
    first = min(
        index
        for string in ([stop] if isinstance(stop, str) else stop)
        if (index := "Hello, world! Ünïcödé 🌱".find(string)) >= 0
    )
    assert text == "Hello, world! Ünïcödé 🌱"[:first]
    assert finish == "stop"


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_length(client: OpenAI, name: str, stream: bool) -> None:
    assert ask(client, stream=stream, **{name: 5}) == ("Hello", "length")
    # Five bytes and half of a character: what is no text yet is shown as such, never lost.
    assert ask(client, stream=stream, **{name: 15}) == ("Hello, world! \N{REPLACEMENT CHARACTER}", "length")


def test_a_conversation_continues_with_the_clients_own_objects(client: OpenAI) -> None:
    messages: Any = [{"role": "system", "content": "More."}, *ASK]
    for _ in range(3):
        reply = client.chat.completions.create(model="help", messages=messages)
        messages += [reply.choices[0].message, {"role": "user", "content": "And?"}]


def test_seed_and_temperature_are_accepted(client: OpenAI) -> None:
    text, _ = ask(client, seed=7, temperature=0, top_p=0.5, stream=False)
    assert text == "Hello, world! Ünïcödé 🌱"


def test_models(serve: Serve) -> None:
    served = serve()
    with connect(served) as client:
        models = client.models.list().data
        assert [model.id for model in models] == ["help"]
        model: Any = client.models.retrieve("help")
        assert model == models[0]
        assert (model.owned_by, model.root, model.max_model_len) == ("secateur", "help", 512)
        assert model.lineage == {"address": address(LINEAGE), "url": "/v1/skills/help/lineage"}
        lineage: Any = client.get("/skills/help/lineage", cast_to=object)
        [step] = lineage["steps"]
        assert (step["technique"], step["options"], step["digest"]) == ("wanda", {"sparsity": "32:64"}, "made")
        assert (lineage["address"], lineage["parent"]) == (address(LINEAGE), None)
        assert lineage["base"]["license"] == "Apache-2.0"
        assert lineage["usage_from"] == "ids"
        assert model.runtime == [{"subject": "runner", "kernel": "fake", "reason": "no model is needed above it"}]
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("nobody")
        with pytest.raises(openai.PermissionDeniedError):
            client.models.retrieve("other")


def test_aliases_with_slashes_are_models(serve: Serve) -> None:
    aliases = ("gpt-4o-mini", "Qwen/Qwen3-0.6B")
    with connect(serve(skills=(replace(HELP, aliases=aliases), OTHER))) as client:
        assert [model.id for model in client.models.list().data] == ["help", *aliases]
        for alias in aliases:
            model: Any = client.models.retrieve(alias)
            assert (model.id, model.root) == (alias, "help")


def test_errors_are_the_clients_own_exceptions(serve: Serve) -> None:
    served = serve()
    cases: list[tuple[str, dict[str, Any], type[openai.APIStatusError], str | None, str | None]] = [
        (KEY, {"model": "nobody"}, openai.NotFoundError, "model", "model_not_found"),
        ("wrong", {}, openai.AuthenticationError, None, "invalid_api_key"),
        (OTHER_KEY, {}, openai.PermissionDeniedError, None, "key_not_allowed"),
        (KEY, {"temperature": 3}, openai.BadRequestError, "temperature", None),
        (KEY, {"extra_body": {"best_of": 2}}, openai.BadRequestError, "best_of", "unsupported_parameter"),
        (KEY, {"top_logprobs": 3}, openai.BadRequestError, "top_logprobs", None),
        (
            KEY,
            {"extra_body": {"chat_template_kwargs": {"messages": 1}}},
            openai.BadRequestError,
            "chat_template_kwargs.messages",
            None,
        ),
        (KEY, {"extra_body": {"mind": 1}}, openai.BadRequestError, "mind", "unknown_parameter"),
        (KEY, {"messages": [{"role": "critic", "content": "x"}]}, openai.BadRequestError, "messages[0].role", None),
    ]
    for key, fields, kind, param, code in cases:
        with connect(served, key) as client, pytest.raises(kind) as caught:
            client.chat.completions.create(**{"model": "help", "messages": ASK, **fields})
        assert (caught.value.param, caught.value.code) == (param, code)
        body: Any = caught.value.response.json()
        assert set(body["error"]) == {"message", "type", "param", "code"}


def test_limits_are_reported_in_headers_and_errors(serve: Serve) -> None:
    with connect(serve("x" * 200, context=100)) as client:
        raw: Any = client.chat.completions.with_raw_response
        for asked, header in (
            (100 - PROMPT_TOKENS, None),
            (65, str(100 - PROMPT_TOKENS)),
            (10**9, str(100 - PROMPT_TOKENS)),
        ):
            answer = raw.create(model="help", messages=ASK, max_tokens=asked)
            assert answer.headers.get("x-secateur-max-tokens") == header
            assert answer.parse().usage.completion_tokens == 100 - PROMPT_TOKENS
        assert raw.create(model="help", messages=ASK).parse().usage.completion_tokens == min(64, 100 - PROMPT_TOKENS)
        for length in (200, 500_000):  # the second is counted before it is tokenised
            long: Any = [{"role": "user", "content": "a" * length}]
            with pytest.raises(openai.BadRequestError) as caught:
                client.chat.completions.create(model="help", messages=long)
            assert (caught.value.param, caught.value.code) == ("messages", "context_length_exceeded")
            numbers = re.findall(r"\d+", caught.value.response.json()["error"]["message"])
            assert numbers[0] == "100"
            assert length <= int(numbers[1]) <= length + PROMPT_TOKENS
            # litellm and LangChain look for these words.
            assert "This model's maximum context length is 100 tokens." in str(caught.value)
            assert "prompt is too long" in caught.value.message
        with pytest.raises(openai.APIStatusError, match=r"larger than 1048576 bytes") as refused:
            client.chat.completions.create(model="help", messages=[{"role": "user", "content": "a" * 2_000_000}])
        assert refused.value.status_code == 413


def test_overload_is_503_and_the_client_retries(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve("slow reply", passes=2, slots=1, max_waiting=0)
    here, really_sleep = threading.get_ident(), time.sleep

    def sleep(seconds: float) -> None:
        """Ends the other reply while this thread's client waits to retry."""
        if threading.get_ident() == here:
            served.runner.release()
        really_sleep(seconds)

    monkeypatch.setattr("openai._base_client.time.sleep", sleep)
    with connect(served) as busy, connect(served) as impatient, connect(served, max_retries=3) as patient:
        running = busy.chat.completions.create(model="help", messages=ASK, stream=True)
        with pytest.raises(openai.InternalServerError) as caught:
            impatient.chat.completions.create(model="help", messages=ASK)
        assert caught.value.status_code == 503
        assert caught.value.response.headers["x-should-retry"] == "true"
        assert int(caught.value.response.headers["retry-after"]) >= 1
        reply = patient.chat.completions.create(model="help", messages=ASK)
        assert reply.choices[0].message.content == "slow reply"
        assert len(list(running)) > 1


def test_an_engine_that_fails_in_mid_stream_is_an_api_error(serve: Serve, tmp_path: Any) -> None:
    runner = says(tmp_path, "Hello!")
    runner.fail_after = 4
    served = serve(runner=runner)
    received: list[str] = []

    def read(client: OpenAI) -> None:
        for chunk in client.chat.completions.create(model="help", messages=ASK, stream=True):
            received.append(chunk.choices[0].delta.content or "")

    with connect(served) as client, pytest.raises(openai.APIError, match="engine failed"):
        read(client)
    assert "".join(received) in ("Hel", "Hell")


def ask(client: OpenAI, *, stream: bool, **options: Any) -> tuple[str, str | None]:
    """The text and the finish reason."""
    if not stream:
        choice = client.chat.completions.create(model="help", messages=ASK, **options).choices[0]
        return choice.message.content or "", choice.finish_reason
    chunks = list(client.chat.completions.create(model="help", messages=ASK, stream=True, **options))
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks), chunks[-1].choices[0].finish_reason


def test_biases_penalties_top_k_and_min_p_reach_the_sampler(serve: Serve) -> None:
    with connect(serve("aaaa")) as client:

        def said(**options: Any) -> str | None:
            answer = client.chat.completions.create(model="help", messages=ASK, max_tokens=4, **options)
            content: str | None = answer.choices[0].message.content
            return content

        assert said(temperature=0) == "aaaa"
        # The fake model gives its next id a logit of 50, and 0 to all others.
        assert said(temperature=0, logit_bias={str(ord("b") - ord("!")): 60}) not in ("aaaa", None)
        assert said(temperature=0, frequency_penalty=2, presence_penalty=2) == "aaaa"
        assert said(temperature=2, extra_body={"top_k": 1}) == said(temperature=2, extra_body={"min_p": 1.0}) == "aaaa"
        with pytest.raises(openai.BadRequestError, match="logit_bias contains token 99999") as caught:
            said(logit_bias={"99999": 1})
        assert caught.value.param == "logit_bias"
