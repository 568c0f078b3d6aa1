"""Reloads that fail half-way, coincide, or bring a skill that its model cannot answer: nothing changes."""

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from server.errors import ConfigError
from server.models.rollout import Model
from server.models.suitability import suitability_warnings
from server.skills.api_keys import digest
from server.skills.catalogue import Skills
from server.skills.skill import Example
from server.text.tokenizer import Tokenizer
from tests.conftest import ROOT
from tests.server.web.test_budgets import ASK, ask
from tests.server.web.test_listeners import call
from tests.support.harness import HELP, KEY, TEMPLATE, Serve, parts, says, served


def write(folder: Path, name: str, **fields: object) -> None:
    """Replace a skill's file atomically, as a careful deployment does."""
    folder.mkdir(exist_ok=True)
    lines = [f"{key} = {json.dumps(value)}" for key, value in {"name": name, "keys": [digest(KEY)], **fields}.items()]
    beside = folder / f".{name}.{threading.get_ident()}"
    beside.write_text("\n".join(lines))
    beside.replace(folder / f"{name}.toml")


def test_a_skill_that_its_model_cannot_answer_is_not_reloaded(tmp_path: Path) -> None:
    folder = tmp_path / "skills"
    runner = says(tmp_path, "Good day.")
    made = parts(tmp_path, runner)
    made = replace(made, config=replace(made.config, skills=folder))
    with served(made, runner) as server:
        write(folder, "help", system="Be brief.")
        first = call(server.admin, "/admin/reload", b"").json["skills"]
        for system, sentence in (
            ("x" * 600, "begins every prompt with 6"),
            ("{{ person * 2 }}", "is not a template"),
            ("{{ nobody }}", "other.toml: Object contains unknown field `nam`"),
        ):
            (folder / "other.toml").write_text('name = "other"\nnam = 1' if "nobody" in system else 'name = "other"')
            write(folder, "help", system=system)
            refused = call(server.admin, "/admin/reload", b"")
            assert refused.status == 400
            assert sentence in refused.json["error"]["message"]
            assert {skill.name: skill.revision for skill in server.parts.skills} == first
            assert ask(server, ASK).json["choices"][0]["message"]["content"] == "Good day."


def test_concurrent_reloads_leave_one_consistent_state(tmp_path: Path) -> None:
    """While another program keeps rewriting both files, and requests go on."""
    folder = tmp_path / "skills"
    runner = says(tmp_path, "Good day.")
    made = parts(tmp_path, runner, slots=8, max_waiting=64)
    made = replace(made, config=replace(made.config, skills=folder))
    ended = threading.Event()

    def deploy() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            write(folder, "help", title=f"Help {number}")
            write(folder, "other", title=f"Other {number}")

    for name in ("help", "other"):
        write(folder, name)
    with served(made, runner) as server, ThreadPoolExecutor(16) as pool:
        deploying = pool.submit(deploy)
        try:
            reloads = [pool.submit(call, server.admin, "/admin/reload", b"") for _ in range(40)]
            answers = [pool.submit(ask, server, ASK) for _ in range(40)]
            assert {reload.result().status for reload in reloads} == {200}
            assert {answer.result().status for answer in answers} == {200}
        finally:
            ended.set()
        deploying.result()
        last = call(server.admin, "/admin/reload", b"").json["skills"]
        assert {skill.name: skill.revision for skill in server.parts.skills} == last
        assert last == {skill.name: skill.revision for skill in Skills.read(folder)}


@pytest.mark.slow
def test_a_signal_during_loading_reloads_afterwards(tmp_path: Path) -> None:
    """Orchestrators send it when a file changes, whether the server listens already or not."""
    write(tmp_path / "skills", "help")
    (tmp_path / "server.toml").write_text(
        f'model = "{tmp_path}/tiny"\nskills = "{tmp_path}/skills"\nledger = "{tmp_path}/usage.sqlite3"\n'
        "port = 0\nadmin_port = 0\n"
    )
    program = f"""
import os, signal, sys
from pathlib import Path
from msgspec.structs import replace
from server.commands import serve
from tests.support.harness import parts, says

def slowly(config, **_):
    os.kill(os.getpid(), signal.SIGHUP)
    made = parts(Path({str(tmp_path)!r}), says(Path({str(tmp_path)!r}), "Good day."))
    return replace(made, config=config)

serve.prepare = slowly
sys.exit(serve.main([{str(tmp_path / "server.toml")!r}]))
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        lines = iter(server.stderr.readline, "")
        assert any("Reloaded help" in line for line in lines)
        server.terminate()
        assert server.wait(120) == 0


def test_a_template_that_refuses_the_skills_turns_is_reported_before_any_request(tmp_path: Path) -> None:
    refusing = "{% if messages | length > 1 %}{{ raise_exception('one message only') }}{% endif %}"
    runner = says(tmp_path, "Good day.")
    made = parts(tmp_path, runner)
    settings = tmp_path / "tiny" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": refusing + TEMPLATE}))
    [model] = made.rollout.models
    strict = Model("tiny", model.engine, Tokenizer.load(tmp_path / "tiny"), model.lineage)
    made.ledger.close()
    assert not list(suitability_warnings(HELP, model))
    assert not list(suitability_warnings(HELP, strict))  # the system prompt moves into the user's turn
    shown = replace(HELP, examples=(Example("Why?", "Because."),))
    with pytest.raises(ConfigError, match=r"'help' does not suit the model 'tiny': .*one message only"):
        list(suitability_warnings(shown, strict))


@pytest.mark.parametrize("limit", ["tokens_per_minute", "tokens_per_day", "tokens_per_month"])
def test_a_limit_too_small_for_any_reply_is_warned_about(tmp_path: Path, limit: str) -> None:
    made = parts(tmp_path, says(tmp_path, "Good day."))
    [model] = made.rollout.models
    made.ledger.close()
    [warning] = suitability_warnings(replace(HELP, **{limit: 20}), model)
    assert f"may use 20 tokens a {limit.rpartition('_')[2]}" in warning
    assert "it cannot answer" in warning
    assert not list(suitability_warnings(replace(HELP, **{limit: 200}), model))


@pytest.mark.parametrize(
    ("ceiling", "asked", "made"), [(7, None, 7), (7, 8, 7), (7, 5, 5), (90, 80, 80), (None, 80, 80)]
)
def test_no_reply_is_longer_than_the_skill_allows(serve: Serve, ceiling: int, asked: int | None, made: int) -> None:
    """A file that sets only `tokens_per_reply` means it, whatever the default of `max_tokens` is."""
    server = serve("0123456789" * 10, skills=[replace(HELP, max_tokens=64, tokens_per_reply=ceiling)])
    answer = ask(server, {**ASK, **({"max_tokens": asked} if asked else {})})
    assert answer.json["usage"]["completion_tokens"] == made
    clamped = asked is not None and asked > made
    assert answer.headers["X-Secateur-Max-Tokens"] == (str(made) if clamped else None)


def test_a_skills_sampling_options_hold_unless_the_caller_sets_others(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"temperature": 0.3, "top_p": 0.8, "top_k": 40, "min_p": 0.1, "frequency_penalty": 0.5,
           "presence_penalty": -0.5, "repetition_penalty": 1.1, "min_tokens": 3}  # fmt: skip
    server = serve(skills=[replace(HELP, **own)])
    seen: list[Any] = []
    submit = server.engine.submit_together

    def watched(sequences: Any) -> Any:
        seen.append({name: getattr(sequences[0].sampling, name) for name in own})
        return submit(sequences)

    monkeypatch.setattr(server.engine, "submit_together", watched)
    other = dict.fromkeys(own, 0) | {"top_p": 1.0, "repetition_penalty": 1.0}
    for more in ({}, other):
        assert ask(server, {**ASK, **more}).status == 200
    assert seen == [own, other]
