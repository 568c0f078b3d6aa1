"""Every reason for a refusal, provoked over HTTP and counted once by skill and reason."""

import re
import urllib.request
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from server.errors import REASONS
from tests.server.web.test_listeners import call
from tests.support.harness import HELP, KEY, ORIGIN, OTHER, OTHER_KEY, Served, parts, rows, says, served
from tests.support.visitor import Visitor

ASK = {"model": "help", "messages": [{"role": "user", "content": "hi"}]}
COUNTED = re.compile(r'secateur_rejected_total\{reason="(\w+)",skill="([\w-]+)"\} (\d+)\.0')


def refused(server: Served) -> dict[tuple[str, str], int]:
    """The nonzero counts; asserts that labels are configured skills or `-`, and known reasons."""
    with urllib.request.urlopen(f"{server.admin}/metrics", timeout=120) as answer:
        found = COUNTED.findall(answer.read().decode())
    assert {reason for reason, _, _ in found} == set(REASONS)
    assert {skill for _, skill, _ in found} == {"help", "other", "-"}
    assert len(found) == 3 * len(REASONS)
    return {(skill, reason): int(count) for reason, skill, count in found if count != "0"}


def ask(server: Served, key: str | None = KEY, **more: Any) -> int:
    """The status of one request."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return int(call(server.url, "/v1/chat/completions", {**ASK, **more}, **headers).status)


def test_a_prompt_beyond_the_context_is_charged_to_no_limit(tmp_path: Path) -> None:
    runner = says(tmp_path, "ok")
    skill = replace(HELP, tokens_per_minute=1000, tokens_per_day=1000)
    with served(parts(tmp_path, runner, (skill, OTHER)), runner) as server:
        long = [{"role": "user", "content": "x" * 600}]
        assert [ask(server, messages=long, max_tokens=90_000) for _ in range(3)] == [400] * 3
        assert ask(server, max_tokens=90_000) == 200  # for what is left of the context
        assert refused(server) == {("help", "context"): 3}
    assert len(rows(tmp_path / "usage.sqlite3")) == 1


def test_every_refusal_is_counted_by_skill_and_reason(tmp_path: Path) -> None:
    runner = says(tmp_path, "x" * 60, delay=0.01)
    helper = replace(HELP, tokens_per_minute=4000, requests_per_minute=5, sessions_per_minute=2)
    other = replace(OTHER, tokens_per_day=100, concurrent_replies=1)
    with served(parts(tmp_path, runner, (helper, other)), runner) as server:
        assert refused(server) == {}
        assert ask(server, key=None) == 401
        assert ask(server, key="sk-wrong") == 401
        assert ask(server, model="nobody", key=None) == 401
        assert ask(server, model="nobody") == 404
        assert ask(server, key=OTHER_KEY) == 403
        assert ask(server, max_tokens="many") == 400
        assert ask(server, messages=[{"role": "user", "content": "x" * 600}]) == 400
        assert ask(server, key=OTHER_KEY, model="other", messages=[{"role": "user", "content": "x" * 90}]) == 429
        assert [ask(server, max_tokens=1) for _ in range(5)] == [200] * 4 + [429]
        assert Visitor.at(server.url).opened.status == Visitor.at(server.url).opened.status == 200
        session = {"skill": "help"}
        assert call(server.url, "/v1/widget/session", session, Origin=ORIGIN).status == 429
        assert call(server.url, "/v1/widget/session", session, Origin="https://evil.example").status == 403
        assert call(server.url, "/v1/widget/session", {"skill": "other"}, Origin=ORIGIN).status == 403
        assert refused(server) == {
            ("-", "auth"): 3,
            ("help", "auth"): 1,
            ("-", "unknown"): 1,
            ("-", "body"): 1,
            ("help", "context"): 1,
            ("other", "budget"): 1,
            ("help", "requests"): 1,
            ("help", "sessions"): 1,
            ("-", "origin"): 1,
            ("other", "origin"): 1,
        }
        server.apps.replies.drain()
        assert ask(server, key=OTHER_KEY, model="other") == 503
        assert refused(server)["other", "draining"] == 1
    # Only what reached the ledger has a row: four replies, and the one that a budget refused.
    outcomes = [row["outcome"] for row in rows(tmp_path / "usage.sqlite3")]
    assert sorted(outcomes) == ["length"] * 4 + ["rejected"]
