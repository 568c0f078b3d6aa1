"""The official client on /v1/completions, and `n` of both endpoints: texts, logprobs, usage, and the ledger's rows."""

import math
import threading
from typing import Any

import openai
import pytest
from msgspec.structs import replace
from openai import OpenAI

from server.engine.sequence import Sequence
from tests.support.fakes import EchoRunner, FakeRunner, ScriptRunner
from tests.support.harness import END, HELP, KEY, START, Serve, Served, ledger_of, until

ASK: Any = [{"role": "user", "content": "hi"}]
VOCABULARY = 258
STOP = 257


def connect(served: Served) -> OpenAI:
    return OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0)


class SeedRunner(FakeRunner):
    """Each choice repeats the letter of its seed; a seed that is a multiple of 5 ends after two."""

    def reply(self, sequence: Sequence) -> int:
        return STOP if sequence.seed % 5 == 0 and sequence.generated == 2 else sequence.seed


def check_ledger(served: Served, *usages: Any) -> None:
    """The rows have the tokens of these usages, in order."""
    rows = [(row["prompt_tokens"], row["output_tokens"]) for row in ledger_of(served)]
    assert rows == [(usage.prompt_tokens, usage.completion_tokens) for usage in usages]


def test_a_raw_prompt_reaches_the_model_as_it_is(serve: Serve) -> None:
    served = serve(runner=EchoRunner(STOP, VOCABULARY))
    with connect(served) as client:
        reply = client.completions.create(model="help", prompt="Ünïcödé 🌱", max_tokens=99)
        special = client.completions.create(model="help", prompt=f"{START}user{END}", max_tokens=99)
        ids = client.completions.create(model="help", prompt=[256, 65, 257], max_tokens=2)
    assert reply.choices[0].text == "Ünïcödé 🌱"
    assert (reply.choices[0].finish_reason, reply.object) == ("stop", "text_completion")
    assert special.choices[0].text == f"{START}user{END}", "what a text spells became a special token"
    assert ids.usage
    assert ids.usage.prompt_tokens == 3
    check_ledger(served, reply.usage, special.usage, ids.usage)


@pytest.mark.parametrize("stream", [False, True])
def test_each_prompt_gets_its_choices_in_order(serve: Serve, stream: bool) -> None:
    served = serve(runner=SeedRunner(VOCABULARY))
    words = served.tokenizer
    seed = words.encode("a")[0]
    with connect(served) as client:
        asked: Any = {"model": "help", "prompt": ["x", "yy"], "n": 3, "seed": seed, "max_tokens": 4, "stream": stream}
        if stream:
            chunks = list(client.completions.create(**asked, stream_options={"include_usage": True}))
            texts, usage = joined(chunks), chunks[-1].usage
        else:
            reply = client.completions.create(**asked)
            texts, usage = {choice.index: choice.text for choice in reply.choices}, reply.usage
    expected = [words.decode([seed + number] * (2 if (seed + number) % 5 == 0 else 4)) for number in range(3)]
    assert texts == dict(enumerate(expected * 2))
    assert usage.prompt_tokens == 3
    check_ledger(served, usage)


def joined(chunks: list[Any]) -> dict[int, str]:
    """The text of each choice of a stream; each ends once."""
    texts: dict[int, str] = {}
    ends = []
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (getattr(choice, "text", None) or "")
            ends += [choice.index] if choice.finish_reason else []
    assert sorted(ends) == sorted(texts)
    return texts


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_of_several_choices(serve: Serve, stream: bool) -> None:
    served = serve(runner=SeedRunner(VOCABULARY))
    seed = served.tokenizer.encode("f")[0]
    asked: Any = {"model": "help", "messages": ASK, "n": 3, "seed": seed, "max_tokens": 4, "logprobs": True}
    with connect(served) as client:
        whole = client.chat.completions.create(**asked)
        chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    texts = [choice.message.content for choice in whole.choices]
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    streamed = [""] * 3
    for chunk in chunks:
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts
    for choice in whole.choices:
        assert choice.logprobs
        assert "".join(token.token for token in choice.logprobs.content or ()) == choice.message.content
    assert whole.usage == chunks[-1].usage.model_copy(
        update={"prompt_tokens_details": whole.usage.prompt_tokens_details}
    )
    check_ledger(served, whole.usage, chunks[-1].usage)


def test_echoed_logprobs_begin_with_the_prompts(serve: Serve) -> None:
    served = serve("ok", skills=[HELP])
    with connect(served) as client:
        reply = client.completions.create(
            model="help", prompt="aü", echo=True, logprobs=2, max_tokens=9, temperature=0, stop=["k"]
        )
        alone = client.completions.create(model="help", prompt="aü", echo=True, logprobs=2, max_tokens=0)
        ended = client.completions.create(model="help", prompt="aü", echo=True, logprobs=0, max_tokens=9)
    found = alone.choices[0].logprobs
    assert found
    assert alone.choices[0].text == "aü"
    assert found.tokens == ["a", "bytes:\\xc3", "bytes:\\xbc"]
    assert found.text_offset == [0, 1, 1]
    assert found.token_logprobs
    assert found.token_logprobs[0] is None
    assert found.token_logprobs[1] == pytest.approx(-math.log1p((VOCABULARY - 1) * math.exp(-50)))
    assert found.top_logprobs
    assert found.top_logprobs[1]["bytes:\\xc3"] == found.token_logprobs[1] == max(found.top_logprobs[1].values())
    assert reply.choices[0].text == "aüo"
    assert reply.choices[0].logprobs
    assert reply.choices[0].logprobs.tokens == [*found.tokens, "o"]
    assert ended.choices[0].logprobs
    assert ended.choices[0].logprobs.tokens == [*found.tokens, "o", "k", END], "the stop token has a place of its own"
    check_ledger(served, reply.usage, alone.usage, ended.usage)


def test_ids_and_the_prompts_logprobs_as_vllm_names_them(serve: Serve) -> None:
    served = serve("ok", skills=[HELP, replace(HELP, name="plain", system="")])
    with connect(served) as client:
        more: Any = {"return_token_ids": True, "prompt_logprobs": 1}
        raw = client.completions.create(model="help", prompt="ab", max_tokens=9, extra_body=more)
        chat = client.chat.completions.create(model="plain", messages=ASK, extra_body=more)
        streamed = list(
            client.chat.completions.create(
                model="plain", messages=ASK, stream=True, extra_body={"return_token_ids": True}
            )
        )
        with pytest.raises(openai.BadRequestError, match="does not show its prompt"):
            client.chat.completions.create(model="help", messages=ASK, extra_body=more)
    words = served.tokenizer
    reply = [*words.encode("ok"), STOP]
    choice: Any = raw.choices[0]
    assert (choice.prompt_token_ids, choice.token_ids) == (words.encode("ab"), reply)
    first, second = choice.prompt_logprobs
    assert first is None
    assert second[str(words.encode("b")[0])] == {"logprob": pytest.approx(0), "rank": 1, "decoded_token": "b"}
    prompt = words.chat(ASK)
    extra: Any = chat
    assert (extra.prompt_token_ids, extra.choices[0].token_ids) == (prompt, reply)
    assert len(extra.prompt_logprobs) == len(prompt)
    assert [id for chunk in streamed for one in chunk.choices for id in getattr(one, "token_ids", ())] == reply
    assert [ids for chunk in streamed if (ids := getattr(chunk, "prompt_token_ids", None))] == [prompt]


def test_stop_tokens_of_the_request_and_min_tokens(serve: Serve) -> None:
    runner = ScriptRunner([0], VOCABULARY)
    served = serve(runner=runner)
    a, b, c, d = served.tokenizer.encode("abcd")
    runner.script = (a, b, STOP, c, d)
    with connect(served) as client:

        def text(**more: Any) -> tuple[str, str]:
            choice = client.completions.create(model="help", prompt="x", temperature=0, extra_body=more).choices[0]
            return choice.text, choice.finish_reason

        assert text() == ("ab", "stop")
        assert text(ignore_eos=True, max_tokens=5) == ("abcd", "length")
        assert text(ignore_eos=True, stop_token_ids=[c]) == ("ab", "stop")
        assert text(ignore_eos=True, stop="b", max_tokens=5) == ("a", "stop")
        assert text(ignore_eos=True, stop="b", min_tokens=2, max_tokens=5) == ("abcd", "length")
        assert text(min_tokens=3, max_tokens=4)[1] == "length"
        with pytest.raises(openai.BadRequestError, match="vocabulary has 258 tokens"):
            text(stop_token_ids=[999])
        with pytest.raises(openai.BadRequestError, match="it may not be more"):
            text(min_tokens=6, max_tokens=5)


def test_a_budget_is_shared_by_all_choices(serve: Serve) -> None:
    """It reserves each choice's longest text; what is left is divided, and less than one token each is refused."""
    served = serve(runner=ScriptRunner([65], VOCABULARY), skills=[replace(HELP, tokens_per_day=20)])
    with connect(served) as client:
        reply = client.completions.create(model="help", prompt="abcd", n=3, max_tokens=50)
        assert [len(choice.text) for choice in reply.choices] == [5, 5, 5]
        assert (reply.to_dict()["outcome"], reply.choices[0].finish_reason) == ("budget", "length")
        with pytest.raises(openai.RateLimitError):
            client.completions.create(model="help", prompt="a", n=2, max_tokens=1)
    check_ledger(
        served, reply.usage, openai.types.CompletionUsage(prompt_tokens=0, completion_tokens=0, total_tokens=0)
    )


def test_a_client_that_leaves_ends_all_choices(serve: Serve) -> None:
    served = serve(runner=ScriptRunner([65], VOCABULARY), passes=3, context=512)
    with connect(served) as client:
        stream = client.completions.create(model="help", prompt="abc", n=2, max_tokens=400, stream=True)
        next(iter(stream))
        stream.close()
    served.runner.allow(2)
    until(lambda: ledger_of(served)[0]["outcome"] == "client_gone")
    until(lambda: not served.engine.running and not served.engine.waiting)
    row = ledger_of(served)[0]
    assert row["prompt_tokens"] == 3
    assert 2 <= row["output_tokens"] <= 10
    served.runner.release()


def test_a_failure_ends_all_choices_with_an_error(serve: Serve) -> None:
    served = serve(runner=ScriptRunner([65], VOCABULARY, fail_after=4))
    with connect(served) as client, pytest.raises(openai.APIError):
        list(client.completions.create(model="help", prompt="abc", n=2, max_tokens=400, stream=True))
    assert [row["outcome"] for row in ledger_of(served)] == ["error"]


def test_a_shutdown_ends_all_choices_with_their_usage(serve: Serve) -> None:
    served = serve(runner=ScriptRunner([65], VOCABULARY, delay=0.01), drain_seconds=0.1)
    with connect(served) as client:
        stream = client.completions.create(model="help", prompt="abc", n=2, max_tokens=200, stream=True)
        next(iter(stream))
        served.stop()
        chunks = list(stream)
    reasons = list(filter(None, (choice.finish_reason for chunk in chunks for choice in chunk.choices)))
    assert reasons == ["length", "length"]
    assert chunks[-1].to_dict()["outcome"] == "server_shutdown"
    until(lambda: ledger_of(served)[0]["outcome"] == "server_shutdown")
    check_ledger(served, chunks[-1].usage)


def test_a_repeated_request_gets_the_same_choices(serve: Serve) -> None:
    served = serve(runner=SeedRunner(VOCABULARY))
    with connect(served) as client:
        asked: Any = {"model": "help", "prompt": "ab", "n": 3, "max_tokens": 4, "echo": True, "logprobs": 1, "seed": 70}
        first, again = (
            client.completions.create(**asked, extra_headers={"Idempotency-Key": "k"}).to_dict() for _ in range(2)
        )
    assert first == again
    assert len(ledger_of(served)) == 1


def test_choices_beyond_the_skills_limit_are_refused(serve: Serve) -> None:
    served = serve(skills=[replace(HELP, choices=2)])
    with connect(served) as client, pytest.raises(openai.BadRequestError, match="allows at most 2"):
        client.chat.completions.create(model="help", messages=ASK, n=3)


def test_choices_are_one_reply_for_concurrency(serve: Serve) -> None:
    served = serve(skills=[replace(HELP, concurrent_replies=1)], passes=1)
    with connect(served) as client:
        asked: Any = {"model": "help", "prompt": "abc", "n": 4, "max_tokens": 4}
        thread = threading.Thread(target=client.completions.create, kwargs=asked)
        thread.start()
        until(lambda: served.engine.running)
        with pytest.raises(openai.RateLimitError):
            client.completions.create(**asked)
        served.runner.release()
        thread.join()
        client.completions.create(**asked)


def test_the_logprobs_of_a_request_are_bounded(serve: Serve) -> None:
    served = serve()
    with connect(served) as client:
        cases: list[Any] = [
            {"prompt": ["x"] * 8, "max_tokens": 500, "n": 16},
            {"prompt": ["x" * 200] * 120, "echo": True},
        ]
        for more in cases:
            with pytest.raises(openai.BadRequestError, match="send fewer prompts"):
                client.completions.create(model="help", logprobs=20, **more)
    assert not ledger_of(served)


@pytest.mark.parametrize("n", [1, 3])
def test_the_last_text_has_the_finish_reason_and_comes_once_the_row_is_settled(serve: Serve, n: int) -> None:
    """As vLLM sends it: one chunk a token, each with more tokens counted than the one before."""
    served = serve(runner=SeedRunner(VOCABULARY))
    seed = 5 * (served.tokenizer.encode("a")[0] // 5) + 1
    with connect(served) as client:
        usage: Any = {"include_usage": True, "continuous_usage_stats": True}
        more: Any = {"n": n, "seed": seed, "max_tokens": 6, "stream": True, "stream_options": usage}
        raw = list_until_finished(served, client.completions.create(model="help", prompt="abc", **more), n)
        chat = list_until_finished(served, client.chat.completions.create(model="help", messages=ASK, **more), n)
    check_chunks(raw, n)
    check_chunks(chat, n)


def list_until_finished(served: Served, chunks: Any, n: int) -> list[Any]:
    """All chunks of a stream; its row is closed when the last choice has its finish reason."""
    found, ends = [], 0
    for chunk in chunks:
        found.append(chunk)
        ends += sum(choice.finish_reason is not None for choice in chunk.choices)
        if ends == n:
            assert ledger_of(served)[-1]["outcome"] == "length"
    return found


def check_chunks(found: list[Any], n: int) -> None:
    *texts, last = [chunk for chunk in found if not is_opening(chunk)]
    assert len(texts) == 6 * n
    assert [chunk.usage.completion_tokens for chunk in texts] == list(range(1, 6 * n + 1))
    ended = [chunk for chunk in texts if chunk.choices[0].finish_reason == "length"]
    assert sorted(chunk.choices[0].index for chunk in ended) == list(range(n))
    assert all(text_of(chunk.choices[0]) for chunk in texts)
    assert (last.choices, last.usage.completion_tokens) == ([], 6 * n)


def is_opening(chunk: Any) -> bool:
    return bool(chunk.choices) and getattr(getattr(chunk.choices[0], "delta", None), "role", None) is not None


def text_of(choice: Any) -> str:
    return str(choice.text if hasattr(choice, "text") else choice.delta.content)
