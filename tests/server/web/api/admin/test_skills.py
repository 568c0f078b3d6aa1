"""The skills manager's endpoints: what is saved, published, tried and refused, over real sockets."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from server.skills.api_keys import digest
from server.skills.revisions.store import Revision, Revisions
from server.skills.skill import Skill
from server.web.api.admin.skills import endpoints
from tests.server.web.test_listeners import call
from tests.support.harness import KEY, Serve, Served, ledger_of

OLD = f'name = "help"\nsystem = "Be brief."\nkeys = ["{digest(KEY)}"]\nmax_tokens = 8\n'
NEW = OLD.replace("brief", "very brief")


@pytest.fixture
def manager(serve: Serve, tmp_path: Path) -> Served:
    """A server whose skills have revisions; `help` is also a file."""
    (tmp_path / "help.toml").write_text(OLD)
    return serve("Good day.", skill_revisions="edit")


def post(server: Served, action: str, body: dict[str, Any], name: str = "help") -> Any:
    answer = call(server.admin, f"/admin/skills/{name}/{action}", body)
    return answer.status, answer.json


def revision(server: Served) -> str:
    """The revision that answers callers now."""
    (skill,) = [skill for skill in server.parts.skills if skill.name == "help"]
    return skill.revision


def test_a_draft_is_saved_published_and_rolled_back_without_a_restart(manager: Served, tmp_path: Path) -> None:
    shown = call(manager.admin, "/admin/skills/help").json
    assert (shown["text"], shown["source"], shown["revisions"]) == (OLD, "file", [])
    status, first = post(manager, "revisions", {"text": OLD, "after": 0, "reason": "as it was"})
    assert (status, first["number"], first["author"]) == (201, 1, "this machine")
    status, second = post(manager, "revisions", {"text": NEW, "after": 1, "reason": "shorter"})
    assert (status, second["number"]) == (201, 2)
    before = revision(manager)
    assert before != second["digest"]
    assert post(manager, "publish", {"number": 2, "reason": "go"})[0] == 200
    assert revision(manager) == second["digest"]
    shown = call(manager.admin, "/admin/skills/help").json
    assert (shown["source"], shown["published"], shown["text"]) == ("revision", 2, NEW)
    diff = call(manager.admin, "/admin/skills/help/diff?old=1&new=2").json["diff"]
    assert '-system = "Be brief."' in diff
    diff = post(manager, "diff", {"text": NEW.replace("very", "most"), "old": 2})[1]["diff"]
    assert ('+system = "Be most brief."' in diff, "+++ help, not saved" in diff) == (True, True)
    assert post(manager, "publish", {"number": 1})[0] == 200
    assert post(manager, "rollback", {"reason": "back"})[0] == 200
    assert revision(manager) == second["digest"]
    assert post(manager, "withdraw", {})[0] == 200
    assert call(manager.admin, "/admin/skills/help").json["source"] == "file"
    with sqlite3.connect(tmp_path / "usage.sqlite3") as ledger:
        rows = ledger.execute("SELECT who, action, object FROM audit WHERE action GLOB 'skill.[^c]*' ORDER BY number")
        found = rows.fetchall()
    assert [(action, what) for _, action, what in found] == [
        ("skill.save", "help@1"),
        ("skill.save", "help@2"),
        ("skill.publish", "help@2"),
        ("skill.publish", "help@1"),
        ("skill.rollback", "help@2"),
        ("skill.withdraw", "help@0"),
    ]
    assert {who for who, _, _ in found} == {"this machine"}


def test_mistakes_and_lost_updates_change_nothing(manager: Served) -> None:
    status, answer = post(manager, "check", {"text": OLD.replace("system", "sistem")})
    assert status == 200
    assert "did you mean `system`?" in answer["problem"]
    valid = Skill(name="help", system="Be brief.", max_tokens=8)
    assert post(manager, "check", {"text": OLD})[1]["revision"] == valid.revision
    for action, body, code in (
        ("revisions", {"text": "name = ", "after": 0}, "skills_invalid"),
        ("revisions", {"text": OLD}, "invalid_body"),
        ("publish", {"number": 1}, None),
        ("rollback", {}, None),
    ):
        status, answer = post(manager, action, body)
        assert (status in (400, 404), answer["error"]["code"]) == (True, code), action
    assert post(manager, "revisions", {"text": OLD, "after": 0})[0] == 201
    status, answer = post(manager, "revisions", {"text": NEW, "after": 0})
    assert (status, answer["error"]["type"]) == (409, "conflict_error")
    assert "help@1 was saved meanwhile" in answer["error"]["message"]


def test_what_cannot_be_served_is_taken_back(manager: Served) -> None:
    post(manager, "revisions", {"text": OLD, "after": 0})
    post(manager, "publish", {"number": 1})
    before = revision(manager)
    lost = f'{OLD}model = "no/such/model"\n'
    post(manager, "revisions", {"text": lost, "after": 1})
    status, answer = post(manager, "publish", {"number": 2})
    assert (status, answer["error"]["code"]) == (400, "skills_invalid")
    assert "so nothing was changed" in answer["error"]["message"]
    assert revision(manager) == before
    assert call(manager.admin, "/admin/skills/help").json["published"] == 1


def test_a_page_that_only_reads(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "help.toml").write_text(OLD)
    server = serve()
    listed = call(server.admin, "/admin/skills").json
    assert (listed["editing"], [skill["name"] for skill in listed["skills"]]) == ("off", ["help", "other"])
    assert listed["role"] == "operator"
    status, answer = post(server, "revisions", {"text": OLD, "after": 0})
    assert (status, answer["error"]["code"]) == (403, "read_only")
    assert not (tmp_path / "skills.sqlite3").exists()


def test_places_are_shown_within_the_servers_folder(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "help.toml").write_text(OLD)
    server = serve()
    shown = call(server.admin, "/admin/skills/help").json
    assert (shown["model"], shown["knowledge"]) == ("tiny", "")
    folder, elsewhere = Path("/srv/shop/skills"), "/srv/models/docs"
    assert endpoints._placed("/srv/shop/skills/knowledge/help/built-2", folder) == "skills/knowledge/help/built-2"
    assert [endpoints._placed(one, folder) for one in (elsewhere, "registry:docs@production", "build/docs")] == [
        elsewhere, "registry:docs@production", "build/docs",
    ]  # fmt: skip


def test_every_field_has_its_documentation(manager: Served) -> None:
    fields = call(manager.admin, "/admin/skills/fields").json["fields"]
    named = {field["name"]: field for field in fields}
    assert {"name", "system", "temperature", "tokens_per_day"} <= named.keys()
    assert all(field["about"] for field in fields)
    assert named["max_tokens"]["default"] == 256


def test_a_draft_is_tried_with_its_prompt_and_metered_as_a_draft(manager: Served) -> None:
    body = {"text": NEW, "messages": [{"role": "user", "content": "hello"}]}
    answer = call(manager.admin, "/admin/skills/help/try", body)
    assert answer.status == 200
    events = [block.split("\n") for block in answer.content.decode().strip().split("\n\n")]
    found = [(lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))) for lines in events]
    assert [name for name, _ in found if name != "text"] == ["passages", "prompt", "end"]
    assert found.pop(0)[1] == {"kind": "none", "passages": []}
    assert "Be very brief." in found[0][1]["text"]
    assert "".join(data["text"] for name, data in found if name == "text") == "Good day"[:8]
    tokens = [token for name, data in found if name == "text" for token in data["tokens"]]
    assert all(len(token["top"]) == 5 for token in tokens)
    ended = found[-1][1]
    assert ended["prompt_tokens"] == found[0][1]["tokens"]
    (row,) = ledger_of(manager)
    assert (row["skill"], row["key_id"], row["output_tokens"]) == ("help", "draft", ended["completion_tokens"])
    assert row["revision"] != revision(manager)
    refused = call(manager.admin, "/admin/skills/help/try", {**body, "text": "name ="})
    assert refused.json["error"]["code"] == "skills_invalid"


def test_the_page_of_a_skill_opens_whatever_is_published(
    manager: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [OLD.replace("brief", f"brief {number}") for number in range(5)]
    for number, text in enumerate(texts):
        assert post(manager, "revisions", {"text": text, "after": number})[0] == 201
    assert post(manager, "publish", {"number": 1})[0] == 200
    with sqlite3.connect(tmp_path / "skills.sqlite3") as database:  # what an older release saved
        database.execute("UPDATE skill_revisions SET content = 'old = 1' WHERE number IN (1, 5)")
    monkeypatch.setattr(endpoints, "MOST_JUDGED", 3)
    read: list[object] = []
    real = Revisions.get

    def get(self: Revisions, name: str, number: Any) -> Revision:
        read.append(number)
        return real(self, name, number)

    monkeypatch.setattr(Revisions, "get", get)
    shown = call(manager.admin, "/admin/skills/help")
    assert shown.status == 200
    assert [one["gate"] and one["gate"]["passed"] for one in shown.json["revisions"]] == [None] * 4 + [False]
    assert sorted(map(str, read)) == ["1", "3", "4", "5", "5"]  # the published one once; the last one's text is shown
    assert post(manager, "publish", {"number": 2})[0] == 200
