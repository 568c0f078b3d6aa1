"""An experiment on a real server: visitors are split, both sides are counted, and the winner is published."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from server.commands.__main__ import main
from tests.server.web.api.admin.test_skills import NEW, OLD, post
from tests.server.web.api.admin.test_skills import manager as manager
from tests.server.web.test_listeners import call
from tests.support.harness import ORIGIN, Served, ledger_of
from tests.support.visitor import Visitor

LINE = f'origins = ["{ORIGIN}"]\n'


def shown(server: Served) -> Any:
    return call(server.admin, "/admin/skills/help/experiment").json["experiment"]


@pytest.fixture
def compared(manager: Served) -> Served:
    """A server whose published revision 1 is compared with revision 2."""
    for number, text in enumerate((OLD, NEW)):
        assert post(manager, "revisions", {"text": LINE + text, "after": number})[0] == 201
    assert post(manager, "publish", {"number": 1})[0] == 200
    assert shown(manager) is None
    status, made = post(manager, "experiment/start", {"rival": 2, "share": 0.5, "reason": "shorter?"})
    assert (status, made["number"], made["rival"]) == (201, 1, 2)
    return manager


def test_visitors_are_split_and_both_sides_are_counted(compared: Served) -> None:
    digests = {one["number"]: one["digest"] for one in call(compared.admin, "/admin/skills/help").json["revisions"]}
    visitors = [Visitor(compared) for _ in range(12)]
    for visitor in visitors:
        for text in ("hello", "and then?"):
            reply = visitor.ask(text)[0].data["reply"]
            assert visitor.post("feedback", {"reply": reply, "rating": "up"}).status == 204
    rows = ledger_of(compared)
    counts = {digest: sum(row["revision"] == digest for row in rows) for digest in digests.values()}
    assert sum(counts.values()) == 24
    assert all(count % 2 == 0 for count in counts.values())  # no conversation changed sides
    found = shown(compared)
    assert [found[side]["replies"] for side in ("published", "rival")] == [counts[digests[1]], counts[digests[2]]]
    assert found["published"]["ratings"] + found["rival"]["ratings"] == 24
    assert found["rival"]["figures"]["liked"]["value"] == 1
    assert found["rival"]["figures"]["length"]["value"] == 8
    difference = found["difference"]["tokens"]
    assert difference["low"] <= difference["value"] == 5 <= difference["high"]  # "very " in bytes


def test_the_winner_is_published_and_all_is_in_the_audit_log(compared: Served, tmp_path: Path) -> None:
    status, answer = post(compared, "experiment/decide", {"number": 3})
    assert (status, answer["error"]["code"]) == (400, "experiment_invalid")
    assert post(compared, "experiment/decide", {"number": 2, "reason": "it won"})[0] == 200
    assert shown(compared) is None
    assert call(compared.admin, "/admin/skills/help").json["published"] == 2
    assert post(compared, "experiment/start", {"rival": 1, "share": 0.1})[0] == 201
    assert post(compared, "experiment/decide", {"number": 2})[0] == 200
    assert post(compared, "experiment/stop", {})[0] == 404
    with sqlite3.connect(tmp_path / "usage.sqlite3") as ledger:
        rows = ledger.execute("SELECT action, object FROM audit WHERE action GLOB 'skill.[ep]*' ORDER BY number")
        found = rows.fetchall()
    assert found == [
        ("skill.publish", "help@1"),
        ("skill.experiment.start", "help@1 and @2 at 0.5"),
        ("skill.publish", "help@2"),
        ("skill.experiment.start", "help@2 and @1 at 0.1"),
        ("skill.experiment.stop", "help@2 and @1 at 0.1"),
    ]


def test_what_cannot_be_compared_or_served_changes_nothing(compared: Served) -> None:
    status, answer = post(compared, "experiment/start", {"rival": 2})
    assert (status, answer["error"]["code"]) == (400, "experiment_running")
    assert post(compared, "experiment/stop", {})[0] == 200
    for body, code in (({"rival": 1}, "experiment_invalid"), ({"rival": 2, "share": 0}, "experiment_invalid")):
        status, answer = post(compared, "experiment/start", body)
        assert (status, answer["error"]["code"]) == (400, code)
    assert post(compared, "experiment/start", {"rival": 9})[0] == 404
    lost = f'{LINE}{OLD}model = "no/such/model"\n'
    assert post(compared, "revisions", {"text": lost, "after": 2})[0] == 201
    status, answer = post(compared, "experiment/start", {"rival": 3})
    assert (status, answer["error"]["code"]) == (400, "skills_invalid")
    assert shown(compared) is None


def test_the_command_does_the_same(compared: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = compared.parts.config
    file = tmp_path / "tiny" / "server.toml"
    file.write_text(
        f'model = "m"\nskills = "{config.skills}"\nledger = "{config.ledger}"\nskill_revisions = "edit"\n'
        f'feedback = "{config.feedback_file}"\n'
    )

    def run(*words: str) -> str:
        code = main(["skills", "experiment", *words, "--server", str(file)])
        printed = capsys.readouterr()
        return printed.out if code == 0 else printed.err

    Visitor(compared).ask("hello")
    assert "help@2 answers 50 % of the conversations" in run("show", "help")
    assert '"share": 0.5' in run("show", "help", "--json")
    assert "choose 1 or 2" in run("decide", "help@7")
    assert "help@1 answers every conversation" in run("stop", "help")
    assert "No experiment runs with 'help'" in run("show", "help")
    assert "help@2 answers 10 % of the conversations" in run("start", "help@draft", "--share", "0.1")
    assert "The share is 2" in run("start", "help@2", "--share", "2")
    assert "help@2 is published" in run("decide", "help@2", "--reason", "it won")
