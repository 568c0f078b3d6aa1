"""`secateur evaluate --skill`: through a running server, metered as a draft; a gate refuses what scores worse."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pruning.evaluation.scoring.replies import overlap
from server.commands.__main__ import main
from tests.server.web.test_listeners import call
from tests.support.harness import Serve, Served, ledger_of
from tests.support.harness import serve as serve

TEXT = 'name = "help"\nsystem = "Be brief."\nmax_tokens = 40\n'
GATE = '[gate]\ntask = "greetings"\nmeasure = "overlap"\nmax_drop = 0.1\n'
TASK = 'name = "greetings"\nkind = "pairs"\nitems = "items.jsonl"\nchoices = 0\n'
ITEMS = (
    '{"question": "Hello?", "answer": "Good day."}\n'
    '{"question": "Are you there?", "answer": "A good day to you."}\n'
    '{"question": "Who are you?", "answer": "Nobody"}\n'
)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def server(serve: Serve, tmp_path: Path) -> Served:
    (tmp_path / "help.toml").write_text(TEXT)
    made = serve("Good day.", skill_revisions="edit")
    for number, text in enumerate((TEXT + GATE, TEXT.replace("brief", "very brief"))):
        assert post(made, "revisions", {"text": text, "after": number})[0] == 201
    return made


def post(server: Served, action: str, body: Any) -> tuple[int, Any]:
    answer = call(server.admin, f"/admin/skills/help/{action}", body)
    return answer.status, answer.json


@pytest.fixture
def run(server: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    folder = tmp_path / "task"
    folder.mkdir()
    (folder / "greetings.toml").write_text(TASK)
    (folder / "items.jsonl").write_text(ITEMS)
    config = folder / "server.toml"
    config.write_text(
        f'model = "m"\nskills = "{tmp_path}"\nledger = "{tmp_path}/usage.sqlite3"\nskill_revisions = "edit"\n'
    )

    def evaluate(*words: str, url: str = server.admin) -> tuple[int, str, str]:
        task = ["--task", str(folder / "greetings.toml"), "--server", str(config), "--url", url]
        return main(["evaluate", *words, *task]), *capsys.readouterr()

    return evaluate


def test_a_revision_is_scored_through_the_server_and_metered_as_a_draft(run: Run, server: Served) -> None:
    code, printed, error = run("--skill", "help@draft")
    assert code == 0, error
    assert "help@2 on greetings: 3 questions" in printed
    # F1 of "good day": 1 with "good day", 4/7 with "a good day to you", 0 with "nobody".
    assert f"overlap            {(1 + 4 / 7 + 0) / 3:.3f}" in printed
    assert "exact              0.333" in printed
    rows = ledger_of(server)
    assert [row["key_id"] for row in rows] == ["draft"] * 3
    tokens = sum(row["prompt_tokens"] + row["output_tokens"] for row in rows)
    assert f"{tokens} tokens" in printed


def test_a_gate_lets_nothing_worse_be_published(run: Run, server: Served, tmp_path: Path) -> None:
    status, answer = post(server, "publish", {"number": 1})
    assert (status, answer["error"]["code"]) == (409, "gate_failed")
    assert "help@1 was not evaluated on the task greetings: `secateur evaluate --skill help@1" in str(answer)
    assert run("--skill", "help@1")[0] == 0
    assert post(server, "publish", {"number": 1})[0] == 200
    assert "help@2 was not evaluated" in str(post(server, "publish", {"number": 2}))  # the published one's gate
    with sqlite3.connect(tmp_path / "skills.sqlite3") as database:  # an evaluation that went badly
        (digest,) = database.execute("SELECT digest FROM skill_revisions WHERE number = 2").fetchone()
        database.execute(
            "INSERT INTO skill_evaluations SELECT 9, skill, ?, task, task_digest, model, author, made, ? "
            "FROM skill_evaluations",
            (digest, '{"overlap": [0.8, 0.5, 0]}'),
        )
    status, answer = post(server, "publish", {"number": 2})
    assert (status, answer["error"]["code"]) == (409, "gate_failed")
    assert "overlap on greetings is 0.433, and 0.524 for help@1: it falls by 0.090" in answer["error"]["message"]
    shown = call(server.admin, "/admin/skills/help").json["revisions"]
    assert [one["gate"]["passed"] for one in shown] == [True, False]
    assert run("--skill", "help@2")[0] == 0  # the last evaluation counts, and it is as good
    assert post(server, "publish", {"number": 2})[0] == 200


def test_what_cannot_be_scored_is_one_sentence(run: Run, tmp_path: Path) -> None:
    for words, message in (
        ((), "name either an artifact's directory or --skill"),
        ((str(tmp_path), "--skill", "help@1"), "name either an artifact's directory or --skill"),
        (("--skill", "help"), "'help' is no revision"),
        (("--skill", "help@9"), "There is no revision help@9"),
        (("--skill", "help@published"), "There is no revision help@published"),
    ):
        code, printed, error = run(*words)
        assert (code, printed) == (2, ""), words
        assert message in error
    assert "does not answer" in run("--skill", "help@1", url="http://127.0.0.1:9")[2]


def test_overlap_is_the_f1_of_words() -> None:
    assert overlap("a b c", "a b c") == 1
    assert overlap("a a b", "a c") == pytest.approx(0.4)  # precision 1/3, recall 1/2
    assert overlap("", "a") == 0
