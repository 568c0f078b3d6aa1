"""The prefix cache over HTTP: callers share the blocks of the skill's own turns, and else meet only their own."""

import json
import sqlite3
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from msgspec.structs import replace

from server.engine.blocks import BLOCK
from server.skills.api_keys import digest
from tests.support.harness import HELP, KEY, Serve, Served
from tests.support.visitor import Visitor

OWN_KEY = "sk-test-of-the-attacker"
SKILL = replace(
    HELP, system="Answer the customers of the shop in one short and friendly line.", keys=(digest(KEY), digest(OWN_KEY))
)
SECRET = "My account 4711-0815 was charged twice. " * 4
WRONG = "X" + SECRET[1:]
SHARED = len(f"[system\n{SKILL.system}]\n[user\n") // BLOCK * BLOCK  # one token a byte, `[` and `]` are one each


@pytest.fixture
def shop(serve: Serve) -> Served:
    return serve("Hello!", skills=(SKILL,))


def usage(
    served: Served,
    text: str,
    key: str = OWN_KEY,
    *,
    turns: tuple[str, ...] = (),
    fields: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    said = [
        {"role": role, "content": one} for role, one in zip(("user", "assistant") * 9, (*turns, text), strict=False)
    ]
    request = urllib.request.Request(
        f"{served.url}/v1/chat/completions",
        json.dumps({"model": "help", "messages": said, **fields}).encode(),
        {"Authorization": f"Bearer {key}"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["usage"]


def cached(served: Served, text: str, key: str = OWN_KEY, **more: Any) -> int:
    """What the response says of the cache, as an attacker reads it."""
    return int(usage(served, text, key, **more)["prompt_tokens_details"]["cached_tokens"])


def visitors_row(folder: Path) -> tuple[int, int]:
    """Prompt tokens of a visitor's latest reply, and how many of them were cached, from the ledger."""
    with closing(sqlite3.connect(folder / "usage.sqlite3")) as database:
        found = database.execute(
            "SELECT prompt_tokens, cached_tokens FROM requests WHERE key_id = '' ORDER BY rowid DESC LIMIT 1"
        ).fetchone()
    return int(found[0]), int(found[1])


def by_key(served: Served) -> None:
    usage(served, SECRET, KEY)


def by_visitor(served: Served) -> None:
    Visitor(served).ask(SECRET)


@pytest.mark.parametrize("victim", [by_key, by_visitor])
def test_anothers_words_are_cached_no_more_than_wrong_ones(shop: Served, victim: Callable[[Served], None]) -> None:
    victim(shop)
    right, wrong = cached(shop, SECRET), cached(shop, WRONG)
    assert right == wrong == SHARED > 0
    for guessed in range(BLOCK, len(SECRET), BLOCK):  # block by block
        assert cached(shop, SECRET[:guessed] + "?" * BLOCK, fields={"user": str(guessed)}) == SHARED


@pytest.mark.parametrize("victim", [by_key, by_visitor])
def test_a_visitor_reads_the_cache_of_nobody_else(
    shop: Served, tmp_path: Path, victim: Callable[[Served], None]
) -> None:
    victim(shop)
    Visitor(shop).ask(SECRET)
    assert visitors_row(tmp_path)[1] == SHARED


def test_a_key_keeps_its_hits_over_retries_and_turns(shop: Served) -> None:
    first = usage(shop, SECRET)
    again = usage(shop, SECRET)
    assert again["prompt_tokens_details"]["cached_tokens"] == (first["prompt_tokens"] - 1) // BLOCK * BLOCK
    following = cached(shop, "And now?", turns=(SECRET, "Hello!"))
    assert following >= (first["prompt_tokens"] + len("Hello!")) // BLOCK * BLOCK


def test_a_conversation_keeps_its_hits_over_turns_and_retries(shop: Served, tmp_path: Path) -> None:
    visitor = Visitor(shop)
    visitor.ask(SECRET)
    prompt, _ = visitors_row(tmp_path)
    reply = visitor.ask("And now?")[0].data["reply"]
    assert visitors_row(tmp_path)[1] >= prompt // BLOCK * BLOCK
    prompt, _ = visitors_row(tmp_path)
    visitor.ask("And now?", replace=reply)
    assert visitors_row(tmp_path) == (prompt, (prompt - 1) // BLOCK * BLOCK)


@pytest.mark.parametrize("field", ["user", "prompt_cache_key"])
def test_a_field_narrows_the_cache_of_its_key_and_opens_no_other(shop: Served, field: str) -> None:
    one, other = {field: "customer 1"}, {field: "customer 2"}
    usage(shop, SECRET, fields=one)
    assert cached(shop, SECRET, fields=other) == SHARED
    assert cached(shop, SECRET) == SHARED
    assert cached(shop, SECRET, KEY, fields=one) == SHARED
    assert cached(shop, SECRET, fields=one) > SHARED
