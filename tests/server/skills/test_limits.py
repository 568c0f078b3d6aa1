"""Rate limits in memory and in a real Redis, with headers that the official client obeys."""

import threading
import time
from contextlib import closing
from typing import Any

import msgspec
import openai
import pytest
from openai import OpenAI

from server.errors import ConfigError
from server.skills.limits import RateLimits
from tests.support.harness import HELP, KEY, Serve, Served
from tests.support.redis_server import redis
from tests.support.visitor import Visitor, events

__all__ = ["redis"]

ASK: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("server.skills.counters.redis_store.REDIS_SECONDS", 120.0)
    return "memory://" if request.param == "memory" else str(request.getfixturevalue("redis").url)


def connect(served: Served, **options: Any) -> OpenAI:
    return OpenAI(base_url=f"{served.url}/v1", api_key=KEY, **{"max_retries": 0, **options})


def limited(**fields: Any) -> Any:
    return msgspec.structs.replace(HELP, **fields)


def test_requests_a_minute_are_exact_with_retry_after(serve: Serve, store: str) -> None:
    served = serve("ok", skills=(limited(requests_per_minute=3, rate_limit_headers=True),), rate_limits=store)
    with connect(served) as client:
        for left in (2, 1, 0):
            raw = client.chat.completions.with_raw_response.create(model="help", messages=ASK)
            assert raw.headers["x-ratelimit-limit-requests"] == "3"
            assert raw.headers["x-ratelimit-remaining-requests"] == str(left)
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="help", messages=ASK)
    refused = caught.value.response.headers
    assert 1 <= int(refused["retry-after"]) <= 60
    assert refused["x-ratelimit-remaining-requests"] == "0"
    assert caught.value.code == "rate_limited"
    assert served.parts.ledger.totals().requests == {("help", "tiny", "stop"): 3}


@pytest.mark.slow
def test_the_official_client_waits_for_retry_after(serve: Serve, monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    for name in ("windows", "redis_store"):
        monkeypatch.setattr(f"server.skills.counters.{name}.WINDOW_SECONDS", 2)
    served = serve("ok", skills=(limited(requests_per_minute=1),), rate_limits=store)
    waits: list[float] = []
    here, really_sleep = threading.get_ident(), time.sleep

    def sleep(seconds: float) -> None:
        if threading.get_ident() == here:
            waits.append(seconds)
        really_sleep(seconds)

    monkeypatch.setattr("openai._base_client.time.sleep", sleep)
    with connect(served, max_retries=5) as client:
        while not waits:  # on a slow machine a window may pass between two requests
            client.chat.completions.create(model="help", messages=ASK)
    assert set(waits) <= {1.0, 2.0}


def test_tokens_a_minute_count_the_prompt_and_the_longest_reply(serve: Serve, store: str) -> None:
    served = serve("ok", skills=(limited(tokens_per_minute=300, rate_limit_headers=True),), rate_limits=store)
    with connect(served) as client:
        prompt = client.chat.completions.create(model="help", messages=ASK, max_tokens=1).usage
        assert prompt
        raw = client.chat.completions.with_raw_response.create(model="help", messages=ASK, max_tokens=50)
        left = 300 - 2 * prompt.prompt_tokens - 51
        assert left - 2 <= int(raw.headers["x-ratelimit-remaining-tokens"]) <= left + 2
        client.chat.completions.create(model="help", messages=ASK, max_tokens=50)
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="help", messages=ASK, max_tokens=64)
        assert caught.value.response.headers["x-ratelimit-limit-tokens"] == "300"


def test_a_request_above_the_limit_of_a_whole_minute_is_invalid(serve: Serve) -> None:
    small = serve("ok", skills=(limited(tokens_per_minute=10),))
    with connect(small) as client, pytest.raises(openai.BadRequestError, match="the skill 'help' allows 10 a minute"):
        client.chat.completions.create(model="help", messages=ASK)


def test_concurrent_replies_are_bounded_and_each_frees_its_place(serve: Serve) -> None:
    served = serve("0123456789", skills=(limited(concurrent_replies=1),))
    with connect(served) as client:
        for _ in range(3):
            served.runner.hold(2)
            running = client.chat.completions.create(model="help", messages=ASK, stream=True)
            with pytest.raises(openai.RateLimitError, match="1 concurrent replies"):
                client.chat.completions.create(model="help", messages=ASK)
            served.runner.release()
            assert list(running)
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="help", messages=[{"role": "user", "content": "x" * 600}])
        assert client.chat.completions.create(model="help", messages=ASK).choices[0].message.content == "0123456789"


def test_a_visitor_has_limits_of_its_own(serve: Serve) -> None:
    served = serve("ok", skills=(limited(visitor_requests_per_minute=2, sessions_per_minute=3),))
    visitor, other = Visitor(served), Visitor(served)
    visitor.ask("one")
    visitor.ask("two")
    refused = visitor.post("messages", {"text": "three"})
    assert (refused.status, refused.json["error"]["code"]) == (429, "rate_limited")
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert "Retry-After" in refused.headers["Access-Control-Expose-Headers"]
    other.ask("one")
    assert Visitor(served).opened.status == 200
    assert Visitor(served).opened.status == 429


def test_one_address_has_a_limit_over_all_its_conversations(serve: Serve, store: str) -> None:
    skill = limited(visitor_requests_per_minute=2, address_requests_per_minute=3)
    served = serve("ok", skills=(skill,), rate_limits=store, trusted_proxies=["127.0.0.1"])

    def asked(address: str) -> int:
        with closing(Visitor(served).request("POST", "messages", {"text": "x"}, X_Forwarded_For=address)) as response:
            return int(response.status)

    assert [asked("192.0.2.1") for _ in range(4)] == [200, 200, 200, 429]
    assert asked("192.0.2.2") == 200


def test_ratings_have_the_limit_of_messages(serve: Serve) -> None:
    served = serve("ok", skills=(limited(visitor_requests_per_minute=2),))
    visitor = Visitor(served)
    reply = visitor.ask("one")[0].data["reply"]
    statuses = [visitor.post("feedback", {"reply": reply, "rating": "up"}).status for _ in range(3)]
    assert statuses == [204, 204, 429]
    assert visitor.ask("two")


def test_an_ipv6_network_shares_its_sessions(serve: Serve) -> None:
    served = serve("ok", skills=(limited(sessions_per_minute=2),), trusted_proxies=["127.0.0.0/8"])

    def opened(*addresses: str) -> int:
        return int(
            Visitor(None, url=served.url).post("session", {"skill": "help"}, X_Forwarded_For=addresses[-1]).status
        )

    Visitor(served)
    assert [opened("2001:db8::1"), opened("2001:db8::2"), opened("2001:db8:0:0:ffff::3")] == [200, 200, 429]
    assert [opened("2001:db8:0:1::1"), opened("::ffff:192.0.2.1"), opened("::ffff:192.0.2.2")] == [200, 200, 200]
    assert [opened("192.0.2.1"), opened("192.0.2.1")] == [200, 429]
    assert [opened(f"198.51.100.9:{port}") for port in (1, 2, 3)] == [200, 200, 429]
    assert [opened(f"[2001:db8:0:2::{port}]:{port}") for port in (1, 2, 3)] == [200, 200, 429]
    # The proxy appends what it saw; what precedes it is the caller's own word.
    assert opened("198.51.100.7, 192.0.2.1") == 429


def test_forwarded_addresses_are_believed_from_trusted_proxies_only(serve: Serve) -> None:
    served = serve("ok", skills=(limited(sessions_per_minute=2),), trusted_proxies=["192.0.2.0/24"])
    visitor = Visitor(served)
    shown = [visitor.post("session", {"skill": "help"}, X_Forwarded_For=f"198.51.100.{n}").status for n in range(2)]
    assert shown == [200, 429]


def test_without_redis_requests_are_refused_and_none_hangs(serve: Serve) -> None:
    served = serve("ok", skills=(limited(requests_per_minute=3),), rate_limits="redis://127.0.0.1:1/0")
    with connect(served) as client, pytest.raises(openai.InternalServerError, match="cannot be counted") as caught:
        client.chat.completions.create(model="help", messages=ASK)
    assert caught.value.status_code == 503
    assert served.parts.ledger.totals().requests == {}


def test_a_malformed_redis_url_is_refused_without_showing_its_password() -> None:
    with pytest.raises(ConfigError) as caught:
        RateLimits("redis://:secret@host:notaport/0")
    assert "secret" not in str(caught.value)


def test_a_stopped_reply_frees_its_place(serve: Serve) -> None:
    served = serve("x" * 60, passes=2, skills=(limited(concurrent_replies=1),))
    visitor = Visitor(served)
    with closing(visitor.stream("go")) as response:
        reply = next(events(response)).data["reply"]
        assert Visitor(served).post("messages", {"text": "me"}).status == 429
        visitor.post(f"replies/{reply}/stop")
    served.runner.release()
    assert visitor.ask("again")[0].name == "start"
