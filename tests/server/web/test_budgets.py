"""Budgets and Idempotency-Key over HTTP."""

import http.client
import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from msgspec.structs import replace

from tests.support.harness import HELP, KEY, Serve, Served, until

ASK = {"model": "help", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**ASK, "stream": True}


class Answer:
    def __init__(self, status: int, headers: http.client.HTTPMessage, content: bytes) -> None:
        self.status, self.headers, self.content = status, headers, content

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def events(self) -> list[Any]:
        lines = [line[6:] for line in self.content.decode().split("\n") if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]


def ask(served: Served, body: dict[str, Any], key: str | None = None) -> Answer:
    headers = {"Authorization": f"Bearer {KEY}"} | ({"Idempotency-Key": key} if key else {})
    with closing(http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=120)) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())


def outcomes(served: Served) -> list[tuple[str, int]]:
    with closing(sqlite3.connect(served.parts.config.ledger)) as database:
        return database.execute("SELECT outcome, prompt_tokens + output_tokens FROM requests ORDER BY id").fetchall()


def test_a_stream_ends_at_the_token_that_reaches_the_budget(serve: Serve) -> None:
    prompt = ask(serve("Hello!"), ASK).json["usage"]["prompt_tokens"]
    served = serve("0123456789" * 3, skills=[replace(HELP, tokens_per_day=prompt + 7)], ledger="day.sqlite3")
    events = ask(served, STREAM).events
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1]) == "0123456"
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"][0]["finish_reason"] == "length"
    assert events[-2]["outcome"] == "budget"
    assert events[-2]["usage"]["completion_tokens"] == 7
    refused = ask(served, STREAM)
    assert (refused.status, refused.json["error"]["code"]) == (429, "budget_exceeded")
    assert 0 < int(refused.headers["Retry-After"]) <= 86400
    assert refused.headers["x-should-retry"] == "false"
    assert outcomes(served) == [("budget", prompt + 7), ("rejected", 0)]


def test_speculated_tokens_neither_pass_the_budget_nor_count_twice(serve: Serve) -> None:
    text = "0123456789" * 6
    prompt = ask(serve(text), ASK).json["usage"]["prompt_tokens"]
    served = serve(text, skills=[replace(HELP, tokens_per_day=2 * prompt + 70)], ledger="day.sqlite3", look_up="on")
    first = ask(served, {**ASK, "max_tokens": 27}).json
    assert first["choices"][0]["message"]["content"] == text[:27]
    assert (first["choices"][0]["finish_reason"], first["usage"]["completion_tokens"]) == ("length", 27)
    events = ask(served, {**STREAM, "max_tokens": 60}).events
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1]) == text[:43]
    assert (events[-2]["outcome"], events[-2]["usage"]["completion_tokens"]) == ("budget", 43)
    assert served.runner.steps < 50
    assert outcomes(served) == [("length", prompt + 27), ("budget", prompt + 43)]


def test_tokens_sampled_in_the_step_of_a_stop_string_are_counted(serve: Serve) -> None:
    served = serve("0123456789" * 6, look_up="on")
    answer = ask(served, {**ASK, "stop": ["12345678901234567890123"]}).json
    assert answer["choices"][0]["message"]["content"] == "0"
    (_, counted), prompt = outcomes(served)[0], answer["usage"]["prompt_tokens"]
    assert 24 <= counted - prompt <= 64
    assert answer["usage"]["completion_tokens"] == counted - prompt


def test_requested_usage_is_sent_once(serve: Serve) -> None:
    served = serve("0123456789" * 3, skills=[replace(HELP, tokens_per_month=60)])
    events = ask(served, {**STREAM, "stream_options": {"include_usage": True}}).events
    assert [event["outcome"] for event in events[:-1] if "outcome" in event] == ["budget"]
    assert [event["usage"]["total_tokens"] for event in events[:-1] if event["usage"]] == [60]
    whole = ask(serve("0123456789" * 3, skills=[replace(HELP, tokens_per_month=60)], ledger="other.sqlite3"), ASK).json
    assert (whole["outcome"], whole["usage"]["total_tokens"]) == ("budget", 60)


def test_concurrent_requests_never_exceed_the_budget(serve: Serve) -> None:
    served = serve("0123456789" * 3, skills=[replace(HELP, tokens_per_day=500)], slots=8, max_waiting=64)
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: ask(served, ASK), range(40)))
    used = sum(answer.json["usage"]["total_tokens"] for answer in answers if answer.status == 200)
    assert {answer.status for answer in answers} == {200, 429}
    assert sum(tokens for _, tokens in outcomes(served)) == used <= 500


def test_a_repeated_key_gets_the_same_reply_without_new_tokens(serve: Serve) -> None:
    served = serve("Good day.")
    first = ask(served, ASK, "k1")
    again = ask(served, ASK, "k1")
    assert again.json == first.json
    assert again.headers["Idempotent-Replayed"] == "true"
    assert first.headers["Idempotent-Replayed"] is None
    steps = served.runner.steps
    other = ask(served, {**ASK, "temperature": 0.5}, "k1")
    assert (other.status, other.json["error"]["code"]) == (400, "idempotency_key_reused")
    assert len(outcomes(served)) == 1
    assert served.runner.steps == steps
    streamed, repeated = ask(served, STREAM, "k2"), ask(served, STREAM, "k2")
    assert [text_of(answer) for answer in (streamed, repeated)] == ["Good day."] * 2
    assert [event for event in repeated.events if event == "[DONE]"] == ["[DONE]"]
    assert len(outcomes(served)) == 2


def text_of(answer: Answer) -> str:
    return "".join(event["choices"][0]["delta"].get("content", "") for event in answer.events[:-1])


def test_a_running_or_forgotten_key_is_a_conflict_that_says_how_it_ended(serve: Serve) -> None:
    served = serve("x" * 40, passes=1)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, served, ASK, "k1")
        until(lambda: served.engine.running == 1)
        early = ask(served, ASK, "k1")
        assert (early.status, early.json["error"]["code"]) == (409, "idempotency_key_in_use")
        served.runner.release()
        assert running.result().status == 200
    served.stop()
    until(lambda: served.apps.replies.idle)


def test_after_a_restart_the_ledger_still_knows_the_key(serve: Serve) -> None:
    first = serve("Good day.")
    usage = ask(first, ASK, "k1").json["usage"]
    first.stop()
    until(lambda: first.parts.ledger.closed)
    answer = ask(serve("Good day."), ASK, "k1")
    assert (answer.status, answer.json["error"]["code"]) == (409, "idempotency_reply_gone")
    assert f"{usage['completion_tokens']} completion tokens" in answer.json["error"]["message"]
