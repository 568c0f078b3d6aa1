"""Wrong keys: throttled by network, counted, warned of once a minute and recorded, with correct keys let through."""

import asyncio
import re
from pathlib import Path

import pytest

from server.errors import Forbidden, RateLimited, Unauthorized
from server.metering.audit.chain import Entry, Event
from server.metering.refusals import KeyFailures
from server.web.http import throttle
from server.web.http.throttle import BURST, KeyThrottle, Refused
from tests.server.metering.test_audit import read
from tests.server.web.access.test_guard import key_of
from tests.server.web.test_listeners import Answer, call
from tests.support.harness import KEY, Serve, Served, until

WRONG = Unauthorized("wrong", code="invalid_api_key")
PUBLIC = {"model": "help", "messages": [{"role": "user", "content": "hi"}]}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_network_has_a_burst_and_then_one_more_every_few_seconds() -> None:
    clock = Clock()
    keys = KeyThrottle(clock)
    assert [keys.wait("a") for _ in range(BURST)] == [0] * BURST
    assert keys.wait("a") == pytest.approx(6)
    assert keys.wait("b") == 0
    clock.now += 6
    assert keys.wait("a") == 0
    assert keys.wait("a") == pytest.approx(6)  # a throttled attempt does not extend the wait
    clock.now += 600
    assert [keys.wait("a") for _ in range(BURST)] == [0] * BURST


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "MOST_NETWORKS", 100)
    keys = KeyThrottle()
    for number in range(1000):
        keys.wait(str(number))
    assert len(keys._due) == 100
    assert list(keys._due)[-1] == "999"


def refused(count: int, addresses: list[str], *, listed: bool = True) -> tuple[list[int], list[Event], KeyFailures]:
    """Statuses of `count` wrong keys from these addresses in turn, what was recorded, and the counter."""
    events: list[Event] = []
    failures = KeyFailures()

    async def run() -> list[int]:
        one = Refused("admin", failures, events.append, listed=listed)
        answers = [one.judge(WRONG, addresses[n % len(addresses)], "", "GET /metrics") for n in range(count)]
        assert all(isinstance(answer, RateLimited) or answer is WRONG for answer in answers)
        one.close()
        return [answer.status for answer in answers]

    return asyncio.run(run()), events, failures


def test_an_ipv6_network_is_one_client() -> None:
    statuses, _, _ = refused(40, [f"2001:db8:0:7::{n:x}" for n in range(40)])
    assert statuses.count(401) == BURST
    statuses, _, _ = refused(40, [f"2001:db8:0:{n:x}::1" for n in range(40)])
    assert statuses.count(401) == 40


@pytest.mark.parametrize(("listed", "own"), [(True, throttle.MOST_ENTRIES), (False, 0)])
def test_entries_are_few_and_say_how_many_they_stand_for(listed: bool, own: int) -> None:
    """From 500 networks, so that none is throttled."""
    _, events, failures = refused(500, [f"10.0.{n // 250}.{n % 250}" for n in range(500)], listed=listed)
    single = [event for event in events if event.object == "GET /metrics"]
    shared = [int(event.result.split()[0]) for event in events if event.object == "several requests"]
    assert len(single) == own
    assert own + sum(shared) == 500
    assert len(shared) <= 2
    [family] = failures.collect()
    assert {sample.labels["listener"]: sample.value for sample in family.samples} == {"admin": 500, "public": 0}


def test_other_refusals_are_recorded_and_not_throttled(caplog: pytest.LogCaptureFixture) -> None:
    events: list[Event] = []

    async def run() -> None:
        one = Refused("admin", KeyFailures(), events.append, listed=True)
        for _ in range(20):
            refusal = Forbidden("no", code="host_not_allowed")
            assert one.judge(refusal, "127.0.0.1", "this machine", "GET /metrics") is refusal
        one.close()

    asyncio.run(run())
    assert [(event.action, event.result) for event in events] == [("admin.refused", "host_not_allowed")] * 20
    assert not caplog.records


def test_a_warning_is_written_once_a_minute(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(throttle, "REPORT_SECONDS", 0.2)

    async def run() -> None:
        one = Refused("admin", KeyFailures(), lambda _: None, listed=True)
        for _ in range(300):
            one.judge(WRONG, "192.0.2.1", "", "GET /metrics")
        await asyncio.sleep(0.3)
        assert len(caplog.records) == 2  # the first key, then the 299 others
        await asyncio.sleep(0.5)
        one.close()

    asyncio.run(run())
    assert [record.getMessage() for record in caplog.records] == [
        "Wrong keys at the admin listener: 1, from networks: 1, most (1) from 192.0.2.1",
        "Wrong keys at the admin listener: 299, from networks: 1, most (299) from 192.0.2.1",
    ]


def ask(server: Served, listener: str, key: str, **headers: str) -> Answer:
    shown = {"Authorization": f"Bearer {key}", **headers}
    if listener == "admin":
        return call(server.admin, "/admin/usage", None, "GET", **shown)
    return call(server.url, "/v1/chat/completions", PUBLIC, **shown)


def failures(server: Served, key: str) -> dict[str, int]:
    text = call(server.admin, "/metrics", None, "GET", Authorization=f"Bearer {key}").content.decode()
    return {name: int(n) for name, n in re.findall(r'secateur_auth_failures_total\{listener="(\w+)"\} (\d+)', text)}


@pytest.mark.parametrize("listener", ["admin", "public"])
def test_guessing_is_throttled_and_a_correct_key_is_not(
    listener: str, serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "admin.json"
    admin = key_of(file, capsys, "--admin", "all")
    server = serve("ok", admin_keys=str(file))
    right = admin if listener == "admin" else KEY
    answers = [ask(server, listener, f"sk-wrong-{n}") for n in range(40)]
    assert [answer.status for answer in answers[:BURST]] == [401] * BURST
    assert {answer.status for answer in answers[BURST + 2 :]} == {429}
    assert int(answers[-1].headers["retry-after"]) in range(1, 7)
    assert ask(server, listener, right).status == 200
    assert failures(server, admin) == {"admin": 0, "public": 0, listener: 40}
    warned = [record.getMessage() for record in caplog.records if record.name == throttle.logger.name]
    assert warned[0].startswith(f"Wrong keys at the {listener} listener: 1, from networks: 1")
    assert len(warned) == 1


def test_a_trusted_proxys_visitors_are_told_apart(serve: Serve) -> None:
    server = serve("ok", trusted_proxies=["127.0.0.1"])
    for _ in range(BURST + 5):
        bad = ask(server, "public", "sk-wrong", **{"X-Forwarded-For": "198.51.100.7"})
    assert bad.status == 429
    assert ask(server, "public", "sk-wrong", **{"X-Forwarded-For": "198.51.100.8"}).status == 401


def test_without_a_trusted_proxy_a_header_does_not_help(serve: Serve) -> None:
    server = serve("ok")
    for number in range(BURST + 5):
        bad = ask(server, "public", "sk-wrong", **{"X-Forwarded-For": f"198.51.100.{number}"})
    assert bad.status == 429


def test_a_missing_key_or_a_widgets_token_is_not_a_guess(serve: Serve) -> None:
    server = serve("ok")
    for _ in range(BURST + 5):
        assert call(server.url, "/v1/chat/completions", PUBLIC).status == 401
        headers = {"Authorization": "Bearer x", "Origin": "http://host.example:8001"}
        assert call(server.url, "/v1/widget/reset", b"", **headers).status == 401


def test_refused_requests_leave_entries_without_the_key(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "admin.json"
    scrape = key_of(file, capsys, "--admin", "metrics")
    server = serve("ok", admin_keys=str(file))
    assert ask(server, "admin", "sk-secret-guess").status == 401
    assert ask(server, "admin", scrape).status == 403
    assert call(server.admin, "/sk-path", None, "GET", Authorization="Bearer sk-other").status == 401
    assert call(server.admin, "/metrics", None, "GET").status == 401

    def refusals() -> list[Entry]:
        return [entry for entry in read(server.parts.config.ledger) if entry.action == "admin.refused"]

    until(lambda: len(refusals()) == 4)
    found = refusals()
    assert [(entry.object, entry.result, bool(entry.who)) for entry in found] == [
        ("GET /admin/usage", "invalid_api_key", False),
        ("GET /admin/usage", "key_not_allowed", True),
        ("GET another path", "invalid_api_key", False),
        ("GET /metrics", "missing_api_key", False),
    ]
    assert {entry.address for entry in found} == {"127.0.0.1"}
    assert "sk-" not in str(found)
