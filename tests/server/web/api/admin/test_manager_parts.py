"""The manager's keys, documents, conversations and questions: shown once, limited, built beside replies, audited."""

import sqlite3
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from server.skills.skill import Skill
from server.web.api.admin.skills import knowledge
from tests.server.web.api.admin.test_skills import OLD, post
from tests.server.web.test_listeners import call
from tests.support.harness import ORIGIN, Serve, Served, until
from tests.support.visitor import Visitor

PAGE = "\n\n".join(
    (
        "# Opening hours",
        "The workshop opens at nine on weekdays and closes at six.",
        "# Prices",
        "A tyre costs ten euros, and a chain costs twenty.",
        "# Repairs",
        "A repair takes two days, and we call you when the bicycle is ready.",
        "# Rental",
        "We rent out bicycles by the day; bring a passport.",
    )
)


@pytest.fixture
def manager(serve: Serve, tmp_path: Path) -> Served:
    folder = tmp_path / "skills"
    folder.mkdir()
    (folder / "help.toml").write_text(f'{OLD}origins = ["{ORIGIN}"]\nkeep_questions = true\n')
    skill = Skill.read(folder / "help.toml")
    return serve(
        "Good day.",
        skills=(skill,),
        skill_revisions="edit",
        keys=str(tmp_path / "keys.json"),
        conversation_storage="database",
    )


def get(server: Served, action: str) -> Any:
    return call(server.admin, f"/admin/skills/help/{action}").json


def upload(server: Served, name: str, content: bytes) -> tuple[int, Any]:
    answer = call(server.admin, f"/admin/skills/help/knowledge/upload?name={name}", content, "POST")
    return answer.status, answer.json


def audit(tmp_path: Path) -> list[tuple[str, str]]:
    with sqlite3.connect(tmp_path / "usage.sqlite3") as ledger:
        return ledger.execute("SELECT action, object FROM audit ORDER BY number").fetchall()


def test_a_key_is_shown_once_and_revoked(manager: Served, tmp_path: Path) -> None:
    status, made = post(manager, "keys/create", {"note": "the shop", "days": 30})
    assert (status, made["state"], made["note"]) == (201, "valid", "the shop")
    headers = {"Authorization": f"Bearer {made['key']}"}
    assert call(manager.url, "/v1/models", None, "GET", **headers).status == 200
    listed = get(manager, "keys")
    assert [one["id"] for one in listed["keys"]] == [made["id"]]
    assert made["key"] not in str(listed)
    assert made["key"] not in (tmp_path / "keys.json").read_text()
    assert post(manager, "keys/revoke", {"id": "0" * 12})[0] == 404
    assert post(manager, "keys/revoke", {"id": made["id"]})[0] == 200
    assert call(manager.url, "/v1/models", None, "GET", **headers).status == 401
    assert [one["state"] for one in get(manager, "keys")["keys"]] == ["revoked"]
    assert {("key.create", f"{made['id']} for help"), ("key.revoke", f"{made['id']} for help")} <= set(audit(tmp_path))


def test_documents_are_built_while_replies_go_on_and_a_draft_answers_from_them(
    manager: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knowledge, "ENCODER", "no_such_package")  # an encoder would take seconds
    for name, code in (("../x.md", 400), (".hidden.md", 400), ("x.exe", 400), ("a%2Fb.md", 400), ("", 400)):
        status, answer = upload(manager, name, b"x")
        assert (status, answer["error"]["code"]) == (code, "document_refused"), name
    assert post(manager, "knowledge/build", {})[1]["error"]["code"] == "no_documents"
    assert upload(manager, "hours.md", PAGE.encode())[0] == 201
    assert [one["name"] for one in get(manager, "knowledge")["documents"]] == ["hours.md"]
    status, begun = post(manager, "knowledge/build", {})
    assert status == 202
    assert post(manager, "knowledge/build", {})[1]["error"]["code"] == "build_running"
    assert Visitor(manager).ask("hello")  # meanwhile
    until(lambda: get(manager, "knowledge")["build"]["code"] is not None)
    shown = get(manager, "knowledge")
    built = [{"name": "built-1", "reference": begun["output"]}]
    assert (shown["build"]["code"], shown["built"]) == (0, built), shown["build"]
    assert shown["build"]["line"].startswith("help/built-1: ")  # without the folder of the skills
    draft = f'{OLD}knowledge = "{begun["output"]}"\n'
    asked = "The workshop opens at nine on weekdays and closes at six?"
    body = {"text": draft, "messages": [{"role": "user", "content": asked}]}
    events = call(manager.admin, "/admin/skills/help/try", body).content.decode()
    assert events.startswith("event: passages")
    assert "opens at nine" in events.split("\n\n")[0]
    assert post(manager, "knowledge/delete", {"name": "hours.md"})[0] == 200
    assert get(manager, "knowledge")["documents"] == []
    lost = {**body, "text": f'{OLD}knowledge = "no/where"\n'}
    assert "Its knowledge cannot be opened" in str(call(manager.admin, "/admin/skills/help/try", lost).json)


def test_conversations_and_questions_are_shown_and_each_look_is_audited(manager: Served, tmp_path: Path) -> None:
    visitor = Visitor(manager)
    reply = visitor.ask("Where is my bicycle?")[0].data["reply"]
    rated = {"reply": reply, "rating": "down", "comment": "no help", "reasons": ["wrong"]}
    assert visitor.post("feedback", rated).status == 204
    (found,) = get(manager, "conversations")["conversations"]
    (turn,) = found["turns"]
    assert (turn["question"], turn["rating"], turn["comment"]) == ("Where is my bicycle?", "down", "no help")
    (question,) = get(manager, "questions")["questions"]
    assert (question["text"], question["why"], question["times"]) == ("Where is my bicycle?", "rated down", 1)
    (listed,) = call(manager.admin, "/admin/skills").json["skills"]
    assert listed["ratings"] == {"up": 0, "down": 1}
    assert {("conversations.view", "help"), ("questions.view", "help")} <= set(audit(tmp_path))
    assert "bicycle" not in str(audit(tmp_path))


def test_what_the_settings_leave_out_is_said(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "help.toml").write_text(OLD)
    server = serve()
    assert get(server, "keys") == {"file": False, "keys": []}
    assert post(server, "keys/create", {})[1]["error"]["code"] == "no_key_file"
    assert get(server, "conversations")["error"]["code"] == "conversations_unkept"
    assert upload(server, "a.md", b"x")[1]["error"]["code"] == "read_only"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{server.admin}/admin/skills/..%2Fhelp/knowledge", timeout=60)
