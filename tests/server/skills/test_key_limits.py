"""Limits of API keys over HTTP, beside those of the skill that the keys share."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from server.metering.usage import EVER, grouped
from server.skills import api_keys
from server.skills.key_limits import KeyLimits
from tests.server.web.test_listeners import call
from tests.support.harness import HELP, OTHER, Serve, Served, until
from tests.support.redis_server import RedisServer, redis

__all__ = ["redis"]

ASK: Any = [{"role": "user", "content": "hi"}]
Connect = Callable[..., OpenAI]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def client(served: Served, file: Path, **limits: int) -> OpenAI:
    """The official client with a new key that opens both skills."""
    shown, _ = api_keys.create(file, ["help", "other"], "", limits=KeyLimits(**limits) if limits else None)
    return OpenAI(base_url=f"{served.url}/v1", api_key=shown, max_retries=0)


def reply(asking: OpenAI, model: str = "help", **options: Any) -> Any:
    return asking.chat.completions.with_raw_response.create(model=model, messages=ASK, **options)


def limits_shown(raw: Any) -> dict[str, str]:
    return {name.removeprefix("x-ratelimit-"): raw.headers[name] for name in raw.headers if "ratelimit" in name}


def test_headers_tell_a_key_of_its_own_limits_only(serve: Serve, file: Path) -> None:
    """Another's requests must not be seen: neither in what is left of the skill, nor in whether headers come at all."""
    skill = msgspec.structs.replace(HELP, requests_per_minute=50, tokens_per_minute=5000)
    served = serve("ok", skills=(skill, OTHER), keys=str(file))
    own, none = client(served, file, requests_per_minute=9, tokens_per_minute=1000), client(served, file)
    with own, none:
        used = reply(own).parse().usage.prompt_tokens + HELP.max_tokens
        for _ in range(3):
            assert limits_shown(reply(none)) == {}
        shown = limits_shown(reply(own))
    assert (shown["limit-requests"], shown["remaining-requests"]) == ("9", "7")
    assert (shown["limit-tokens"], shown["remaining-tokens"]) == ("1000", str(1000 - 2 * used))


@pytest.mark.parametrize("whose", ["key", "skill"])
def test_a_refusal_names_whose_limit_it_is_and_both_hold(serve: Serve, file: Path, whose: str) -> None:
    key, skill = (2, 3) if whose == "key" else (3, 2)
    served = serve("ok", skills=(msgspec.structs.replace(HELP, requests_per_minute=skill), OTHER), keys=str(file))
    with client(served, file, requests_per_minute=key) as asking:
        for _ in range(2):
            reply(asking)
        with pytest.raises(openai.RateLimitError) as caught:
            reply(asking)
    subject, code = ("This API key", "key_rate_limited") if whose == "key" else ("The skill 'help'", "rate_limited")
    assert f"{subject} allows 2 requests a minute." in str(caught.value)
    assert caught.value.code == code
    assert caught.value.response.headers["x-ratelimit-limit-requests"] == str(key)
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60


@pytest.mark.parametrize("store", ["memory", "redis"])
def test_requests_that_a_keys_limit_refuses_take_nothing_from_the_skill(
    serve: Serve, file: Path, store: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one caller could use up the skill for all others with requests that are never answered; nor the reverse."""
    monkeypatch.setattr("server.skills.counters.redis_store.REDIS_SECONDS", 120.0)
    url = "memory://" if store == "memory" else request.getfixturevalue("redis").url
    skill = msgspec.structs.replace(HELP, requests_per_minute=3)
    served = serve("ok", skills=(skill, OTHER), keys=str(file), rate_limits=url)
    with client(served, file, requests_per_minute=1) as greedy, client(served, file, requests_per_minute=9) as other:
        reply(greedy)
        for _ in range(5):
            with pytest.raises(openai.RateLimitError, match="This API key"):
                reply(greedy)
        for _ in range(2):
            left = limits_shown(reply(other))["remaining-requests"]
        for _ in range(3):
            with pytest.raises(openai.RateLimitError, match="The skill"):
                reply(other)
        assert limits_shown(reply(other, model="other"))["remaining-requests"] == str(int(left) - 1)


def test_a_keys_limits_hold_over_all_its_skills_and_change_at_once(serve: Serve, file: Path) -> None:
    served = serve("ok", keys=str(file))
    with client(served, file, requests_per_minute=2) as asking:
        reply(asking)
        reply(asking, model="other")
        with pytest.raises(openai.RateLimitError, match="This API key allows 2"):
            reply(asking)
        [key] = api_keys.read(file).keys
        api_keys.limit(file, key.id, {"requests_per_minute": 3})
        assert limits_shown(reply(asking))["remaining-requests"] == "0"
        api_keys.limit(file, key.id, {"requests_per_minute": None, "tokens_per_minute": 10})
        with pytest.raises(openai.BadRequestError, match="this API key allows 10 a minute"):
            reply(asking)


def test_a_reply_is_cut_to_what_the_keys_minute_can_hold(serve: Serve, file: Path) -> None:
    served = serve("0123456789" * 6, keys=str(file))
    with client(served, file) as asking:
        prompt = reply(asking, max_tokens=1).parse().usage.prompt_tokens
        [key] = api_keys.read(file).keys
        api_keys.limit(file, key.id, {"tokens_per_minute": prompt + 20})
        raw = reply(asking, max_tokens=50)
    assert raw.headers["x-secateur-max-tokens"] == "20"
    assert raw.parse().usage.completion_tokens == 20


def test_replies_of_a_key_are_bounded_and_another_key_goes_on(serve: Serve, file: Path) -> None:
    served = serve("0123456789", keys=str(file), slots=4)
    with client(served, file, concurrent_replies=1) as one, client(served, file) as other:
        served.runner.hold(2)
        running = one.chat.completions.create(model="help", messages=ASK, stream=True)
        with pytest.raises(openai.RateLimitError, match="This API key allows 1 concurrent replies") as caught:
            reply(one, model="other")
        assert caught.value.code == "key_rate_limited"
        served.runner.release()
        assert reply(other).parse().choices
        assert list(running)
        assert reply(one).parse().choices


def test_a_keys_budget_ends_its_replies_and_metrics_admin_page_and_usage_agree(serve: Serve, file: Path) -> None:
    served = serve("0123456789" * 3, keys=str(file))
    with client(served, file) as first:
        prompt = reply(first, max_tokens=1).parse().usage.prompt_tokens
        [key] = api_keys.read(file).keys
        api_keys.limit(file, key.id, {"tokens_per_day": 2 * prompt + 1 + 7})
        cut = reply(first).parse()
        assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 7)
        shown, new, _ = api_keys.rotate(file, key.id, timedelta(hours=1))
        rotated = OpenAI(base_url=f"{served.url}/v1", api_key=shown, max_retries=0)
        for asking in (first, rotated):
            with pytest.raises(openai.RateLimitError, match="This API key has no tokens left for this day") as caught:
                reply(asking)
            assert caught.value.code == "key_budget_exceeded"
            assert caught.value.response.headers["x-should-retry"] == "false"
        rotated.close()
    gauges = {
        (sample.name, sample.labels["key"], sample.labels["period"]): sample.value
        for family in text_string_to_metric_families(call(served.admin, "/metrics").content.decode())
        for sample in family.samples
        if sample.name.startswith("secateur_key_budget")
    }
    assert gauges == {
        ("secateur_key_budget_limit_tokens", new.id, "day"): 2 * prompt + 8,
        ("secateur_key_budget_used_tokens", new.id, "day"): 2 * prompt + 8,
        ("secateur_key_budget_reserved_tokens", new.id, "day"): 0,
    }
    with served.parts.ledger.snapshot() as database:
        sums = grouped(database, ("key",), EVER)
    assert sum(row[2] + row[4] for row in sums if row[0] in (key.id, new.id)) == 2 * prompt + 8
    [drawn] = call(served.admin, "/admin/summary").json["summary"]["key_budgets"]
    assert drawn == {"key": new.id, "period": "day", "used": 2 * prompt + 8, "reserved": 0, "limit": 2 * prompt + 8}


def test_twenty_clients_never_exceed_a_keys_budget(serve: Serve, file: Path) -> None:
    served = serve("0123456789" * 3, keys=str(file), slots=8, max_waiting=64)
    with client(served, file, tokens_per_month=600) as asking, ThreadPoolExecutor(20) as pool:

        def tokens(_: int) -> int:
            with suppress(openai.RateLimitError):
                return int(reply(asking).parse().usage.total_tokens)
            return 0

        used = sum(pool.map(tokens, range(40)))
    assert 0 < used <= 600
    assert [row.used for row in served.parts.ledger.spent("key")] == [used, used]


@pytest.mark.parametrize("fail", ["closed", "open"])
def test_metrics_and_readiness_while_the_store_is_away(
    serve: Serve, file: Path, redis: RedisServer, monkeypatch: pytest.MonkeyPatch, fail: str
) -> None:
    for name in ("PROBE_SECONDS", "RENEW_SECONDS"):
        monkeypatch.setattr(f"server.skills.counters.store.{name}", 0.02)
    served = serve("ok", keys=str(file), rate_limits=redis.url, rate_limits_fail=fail)

    def says(line: str) -> bool:
        return line in call(served.admin, "/metrics").content.decode().splitlines()

    with client(served, file, requests_per_minute=5) as asking, client(served, file) as unlimited:
        assert limits_shown(reply(asking))["remaining-requests"] == "4"
        assert says("secateur_rate_limit_store_up 1.0")
        redis.stop()
        until(lambda: says("secateur_rate_limit_store_up 0.0"))
        assert says("secateur_rate_limit_store_absences_total 1.0")
        assert call(served.url, "/readyz").status == 200
        assert reply(unlimited).parse().choices, "no limit holds for it, so none has to be counted"
        if fail == "open":
            assert limits_shown(reply(asking))["remaining-requests"] == "4", "counted in this process alone"
        else:
            with pytest.raises(openai.InternalServerError, match="their store does not answer") as caught:
                reply(asking)
            assert (caught.value.status_code, caught.value.response.headers["retry-after"]) == (503, "5")
        redis.start()
        until(lambda: says("secateur_rate_limit_store_up 1.0"))
        assert limits_shown(reply(asking))["remaining-requests"] == "4"
