"""Skills' TOML files: reloaded all or none, their revision, and the variables of a system prompt."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from server.skills.catalogue import Skills
from tests.server.web.test_listeners import call
from tests.support.harness import HELP, KEY, Serve, parts, says, served, until
from tests.support.server_process import process

ASK = {"model": "help", "messages": [{"role": "user", "content": "hi"}]}


def write(folder: Path, **fields: Any) -> None:
    folder.mkdir(exist_ok=True)
    lines = [f"{name} = {json.dumps(value)}" for name, value in {"name": "help", **fields}.items()]
    (folder / "help.toml").write_text("\n".join(lines))


def test_skills_are_reloaded_whole_or_not_at_all(tmp_path: Path) -> None:
    folder, runner = tmp_path / "skills", says(tmp_path, "ok")
    write(folder, title="Before", keys=list(HELP.keys))
    prepared = parts(tmp_path, runner, skills=[], **{})
    config = msgspec.structs.replace(prepared.config, skills=folder)
    prepared = msgspec.structs.replace(prepared, config=config, skills=Skills(Skills.read(folder)))
    with served(prepared, runner) as server:
        before = call(server.admin, "/admin/reload", b"").json["skills"]["help"]
        write(folder, title="After", keys=list(HELP.keys))
        after = call(server.admin, "/admin/reload", b"").json["skills"]["help"]
        assert before != after == next(iter(prepared.skills)).revision
        write(folder, title="Broken", temperature=9)
        (folder / "second.toml").write_text('name = "second"')
        refused = call(server.admin, "/admin/reload", b"")
        assert refused.status == 400
        assert "help.toml" in refused.json["error"]["message"]
        assert "$.temperature" in refused.json["error"]["message"]
        assert prepared.skills.names == ("help",)
        assert next(iter(prepared.skills)).title == "After"
        write(folder, title="Other model", model="another")
        assert "another is not an artifact" in call(server.admin, "/admin/reload", b"").json["error"]["message"]
        assert call(server.url, "/admin/reload", b"").status == 404


@pytest.mark.slow
def test_sighup_reloads_the_skills(tmp_path: Path) -> None:
    authorised: dict[str, Any] = {"Authorization": "Bearer sk-test-of-help"}
    with process(tmp_path) as server:
        assert call(server.url, "/v1/skills/help", **authorised).json["title"] == "Help desk"
        write(tmp_path, title="Two", keys=list(HELP.keys))
        os.kill(server.process.pid, signal.SIGHUP)
        until(lambda: call(server.url, "/v1/skills/help", **authorised).json["title"] == "Two")


def test_the_revision_depends_on_content_and_not_on_access(tmp_path: Path) -> None:
    folder = tmp_path / "skills"
    write(folder, system_file="prompt.txt")
    (folder / "prompt.txt").write_text("Be kind.")
    first = Skills.read(folder)[0]
    assert first.system == "Be kind."
    write(folder, system_file="prompt.txt", origins=["https://a.example"], keys=list(HELP.keys))
    assert Skills.read(folder)[0].revision == first.revision
    (folder / "prompt.txt").write_text("Be kinder.")
    assert Skills.read(folder)[0].revision != first.revision


def test_the_prompt_is_a_template_of_few_variables(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    skill = msgspec.structs.replace(HELP, system="You are {{ title }}. Today is {{ date }}.{{ person }}")
    server = serve(skills=(skill,))
    seen: list[Any] = []
    chat = server.tokenizer.chat

    def watched(messages: Any, **options: Any) -> list[int]:
        seen.append(messages[0]["content"])
        return chat(messages, **options)

    monkeypatch.setattr(server.tokenizer, "chat", watched)
    call(server.url, "/v1/chat/completions", ASK, Authorization=f"Bearer {KEY}")
    assert seen[0].startswith("You are Help desk. Today is 20")
    assert "{{" not in seen[0]
